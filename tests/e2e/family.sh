#!/usr/bin/env bash
# Every architecture through the whole command line: train and resume, generate with a state that goes on, eval,
# logits, inspect, convert. One tiny config each in tests/family, over bytes. With names: those only. With
# KRAIT_TEST_DEVICE=cuda on the GPU, and what was trained there goes on on the CPU.
source "$(dirname "$0")/../support/e2e.sh"
device=${KRAIT_TEST_DEVICE:-cpu}
export OMP_NUM_THREADS=1  # models this small only wait for threads
configs=$tests/family

tokens() { sed -E 's/.*"tokens":\[([^]]*)\].*/\1/' "$1"; }

krait() {
  case $1 in
    train | generate | eval | logits) "$KRAIT" "$@" --device "$device" ;;
    *) "$KRAIT" "$@" ;;
  esac
}

for i in $(seq 60); do echo "the snake $((i % 7)) sleeps under the old tree number $((i % 13))"; done >train.txt
head -c 300 train.txt >valid.txt  # longer than what moe_mamba has positions for
printf 'the snake sleeps under' | krait tokenize --tokenizer bytes --out ids.npy

# close A B: the same 256 floats at the end of two files, to 1e-5 of the largest.
close() {
  paste <(tail -c 1024 "$1" | od -An -v -tf4 -w4) <(tail -c 1024 "$2" | od -An -v -tf4 -w4) |
    awk '{ d = $1 - $2; d = d < 0 ? -d : d; m = $1 < 0 ? -$1 : $1; if (d > e) e = d; if (m > x) x = m }
         END { exit !(NR == 256 && x > 0 && e <= 1e-5 * x) }'
}

# train LENGTH OPTIONS...
train() {
  local length=$1
  shift
  krait train --seq-len "$length" --data "$work/train.txt" --valid "$work/valid.txt" --batch-size 3 --lr 3e-3 --seed 1 \
    --dropout 0.1 --quiet "$@"
}

# Equal runs: the losses and every saved byte of weights and moments.
same_runs() {
  cmp <(losses "$1") <(losses "$2") || die "$name: the losses of $1 and $2 differ"
  local f
  for f in "$1"/last/*.safetensors "$1"/last/*.bin; do
    [[ ! -e $f ]] || cmp "$f" "$2/last/${f##*/}" || die "$name: ${f##*/} of $1 and $2 differ"
  done
}

check() {
  name=$1
  local config=$configs/$name.json model=whole/last layout converted=0
  mkdir "$name" && cd "$name"

  # A run that stops and goes on is the run that never stopped.
  train 24 --model "$config" --out whole --steps 6 >/dev/null
  train 24 --model "$config" --out parts --steps 3 >/dev/null
  krait train --resume parts --steps 6 --quiet >/dev/null
  same "$(losses whole | grep -c '^[0-9.]*$')" 6 "$name: finite losses"
  same_runs whole parts
  if [[ $device != cpu ]]; then  # one format: the CPU goes on where the GPU stopped
    cp -r parts moved
    "$KRAIT" train --resume moved --steps 7 --device cpu --quiet >/dev/null
    krait train --resume parts --steps 7 --quiet >/dev/null
    awk -v a="$(losses moved | tail -n 1)" -v b="$(losses parts | tail -n 1)" \
      'BEGIN { exit !(a > 0 && a - b < 1e-4 * b && b - a < 1e-4 * b) }' || die "$name: the CPU goes on from the GPU"
  fi

  # A state that does not grow is carried through the data, but for positions that run out (MoE-Mamba). What cannot
  # be is refused before anything is written.
  local refused expected
  if train 24 --model "$config" --out carried --steps 2 --carry-state --order sequential >/dev/null 2>err.txt; then
    refused=0
  else
    grep -q 'carry-state' err.txt || die "$name: train --carry-state: $(cat err.txt)"
    [[ ! -e carried ]] || die "$name: a refused run left a folder"
    refused=1
  fi

  # The model is what its config says.
  krait inspect "$config" --json >config.json
  krait inspect "$model" --json >inspect.json
  for k in architecture parameters d_model n_layer state_bytes; do
    same "$(key inspect.json $k)" "$(key config.json $k)" "$name: $k of the trained model"
  done
  expected=$(($(key inspect.json state_bytes_per_token) > 0))
  [[ $name != moe_mamba ]] || expected=1
  same $refused $expected "$name: train --carry-state is refused"
  krait inspect "$model" --tensors >tensors.txt
  krait inspect "$model" --batch 2 --length 24 >memory.txt
  [[ -s tensors.txt && -s memory.txt ]] || die "$name: inspect"

  # What was read and written goes on from its state; a batch is what each prompt gives alone.
  local sample=(--temperature 0.9 --seed 5 --json --quiet)
  krait generate "$model" --prompt "the snake" --max-new 12 "${sample[@]}" >all.json
  same "$(tokens all.json | tr ',' '\n' | wc -l)" 12 "$name: new tokens"
  krait generate "$model" --prompt "the snake" --max-new 5 "${sample[@]}" --state-out s.safetensors >first.json
  krait generate "$model" --state-in s.safetensors --max-new 7 "${sample[@]}" >rest.json
  same "$(tokens first.json),$(tokens rest.json)" "$(tokens all.json)" "$name: tokens from the state"
  krait generate "$model" --prompt a --prompt "the snake" --max-new 12 "${sample[@]}" >batch.json
  sed -n 2p batch.json >second.json
  same "$(tokens second.json)" "$(tokens all.json)" "$name: a row of a batch"

  # Likelihood, and the same in bfloat16 to 2%.
  krait eval "$model" --data ../valid.txt --json --quiet >eval.json
  same "$(key eval.json tokens)" 300 "$name: tokens of eval"
  krait eval "$model" --data ../valid.txt --dtype bfloat16 --json --quiet >bf16.json
  awk -v a="$(key eval.json nll)" -v b="$(key bf16.json nll)" \
    'BEGIN { exit !(a > 0 && a < 6 && b > 0.98 * a && b < 1.02 * a) }' ||
    die "$name: nll $(key eval.json nll), in bfloat16 $(key bf16.json nll)"

  # Logits, bit for bit through each layout that the architecture has.
  krait logits "$model" --tokens ../ids.npy --out logits.npy
  krait logits "$model" --tokens ../ids.npy --out last.npy --last
  close logits.npy last.npy || die "$name: logits --last"
  [[ $device != cpu ]] || # the order of a product's sums may follow the number of rows on a GPU
    same "$(tail -c 1024 logits.npy | cksum)" "$(tail -c 1024 last.npy | cksum)" "$name: bits of logits --last"
  for layout in huggingface original; do
    if ! krait convert "$model" $layout --layout $layout >/dev/null 2>err.txt; then
      grep -q 'layout' err.txt || die "$name: convert to $layout: $(cat err.txt)"
      [[ ! -e $layout ]] || die "$name: a refused convert left $layout"
      continue
    fi
    converted=$((converted + 1))
    krait convert $layout back-$layout --layout "$(key inspect.json layout | tr -d '"')" >/dev/null
    for m in $layout back-$layout; do
      krait logits $m --tokens ../ids.npy --out $m.npy
      cmp logits.npy $m.npy || die "$name: logits of $m"
    done
  done
  [[ $converted -gt 0 ]] || die "$name: no layout to convert to"
  cd ..
}

start=$SECONDS
names=("$@")
[[ $# -gt 0 ]] || for config in "$configs"/*.json; do names+=("$(basename "$config" .json)"); done
[[ ${#names[@]} -gt 0 ]] || die "no configs in $configs"
for n in "${names[@]}"; do check "$n"; done

# Text goes as far as positions do.
if [[ -d moe_mamba ]]; then
  krait generate moe_mamba/whole/last --prompt "$(head -c 120 train.txt)" --max-new 50 --json --quiet >far.json 2>/dev/null
  same "$(tokens far.json | tr ',' '\n' | wc -l),$(key far.json finish)" '9,"length"' "moe_mamba: tokens up to 128 positions"
  krait generate moe_mamba/whole/last --prompt "$(head -c 120 train.txt)" --max-new 50 --state-out far --json --quiet \
    >far.json 2>/dev/null
  same "$(tokens far.json | tr ',' '\n' | wc -l)" 8 "moe_mamba: tokens up to 128 positions, all of them read"
  { head -c 50 train.txt | tr '\n' ' ' && echo && echo ten bytes; } >turns.txt # 51 and 10 tokens
  krait generate moe_mamba/whole/last --interactive --max-new 50 --json --quiet <turns.txt >far.json 2>/dev/null ||
    die "moe_mamba: two turns"
  same "$(tokens far.json | tr ',\n' '  ' | wc -w)" 67 "moe_mamba: tokens of two turns, up to 128 positions"
  # A turn that cannot be read ends a conversation, of which the state is what was said before.
  if { echo ten bytes && head -c 130 train.txt | tr '\n' ' ' && echo; } |
    krait generate moe_mamba/whole/last --interactive --max-new 5 --json --quiet --state-out said >far.json 2>err.txt; then
    die "moe_mamba read a turn beyond its positions"
  fi
  grep -q 'the conversation has 146 tokens' err.txt || die "moe_mamba: $(cat err.txt)"
  krait generate moe_mamba/whole/last --state-in said --max-new 3 --json --quiet >far.json || die "moe_mamba: a state is gone"
  if krait generate moe_mamba/whole/last --prompt-file valid.txt --quiet >/dev/null 2>err.txt; then
    die "moe_mamba read a prompt beyond its positions"
  fi
  grep -q 'the prompt has 300 tokens, and this model has 128 positions' err.txt || die "moe_mamba: $(cat err.txt)"
fi

# Sequences that a model cannot be trained on.
for limit in s4:64 moe_mamba:128; do
  if train 200 --model "$configs/${limit%:*}.json" --out long --steps 1 >/dev/null 2>err.txt; then
    die "${limit%:*} was trained on sequences of 200 tokens"
  fi
  grep -q "at most ${limit#*:} tokens" err.txt || die "${limit%:*}: $(cat err.txt)"
done
echo "${#names[@]} architectures through the command line: all as it should be ($((SECONDS - start)) s)"
