#!/usr/bin/env bash
# Every architecture through the whole command line: train and resume, generate with a state that goes on, eval,
# logits, inspect, convert. One tiny config each in tests/family, over bytes. With names: those only.
set -euo pipefail
: "${KRAIT:?the program to test}"
export OMP_NUM_THREADS=1  # models this small only wait for threads
configs=$(cd "$(dirname "$0")/../family" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

die() {
  echo "FAILED: $*" >&2
  exit 1
}
same() { [[ $1 == "$2" ]] || die "$3: expected '$2', got '$1'"; }
key() { sed -E "s/.*\"$2\":(\"([^\"]*)\"|[^,}]*).*/\1/" "$1"; }
tokens() { sed -E 's/.*"tokens":\[([^]]*)\].*/\1/' "$1"; }
losses() { sed -E 's/.*"loss":([^,]*),.*/\1/' "$1/log.jsonl"; }

for i in $(seq 60); do echo "the snake $((i % 7)) sleeps under the old tree number $((i % 13))"; done >train.txt
head -c 300 train.txt >valid.txt  # longer than what moe_mamba has positions for
head -c 120 train.txt >short.txt
printf 'the snake sleeps under' | "$KRAIT" tokenize --tokenizer bytes --out ids.npy

# train LENGTH OPTIONS...
train() {
  local length=$1
  shift
  "$KRAIT" train --seq-len "$length" --data "$work/train.txt" --valid "$work/valid.txt" --batch-size 3 --lr 3e-3 --seed 1 \
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
  "$KRAIT" train --resume parts --steps 6 --quiet >/dev/null
  same "$(losses whole | grep -c '^[0-9.]*$')" 6 "$name: finite losses"
  same_runs whole parts

  # A state that does not grow is carried through the data, but for positions that run out (MoE-Mamba) and for
  # convolutions (S4). What cannot be is refused before anything is written.
  local refused expected
  if train 24 --model "$config" --out carried --steps 2 --carry-state --order sequential >/dev/null 2>err.txt; then
    refused=0
  else
    grep -q 'carry-state' err.txt || die "$name: train --carry-state: $(cat err.txt)"
    [[ ! -e carried ]] || die "$name: a refused run left a folder"
    refused=1
  fi

  # The model is what its config says.
  "$KRAIT" inspect "$config" --json >config.json
  "$KRAIT" inspect "$model" --json >inspect.json
  for k in architecture parameters d_model n_layer state_bytes; do
    same "$(key inspect.json $k)" "$(key config.json $k)" "$name: $k of the trained model"
  done
  expected=$(($(key inspect.json state_bytes_per_token) > 0))
  case $name in moe_mamba | s4 | s4d) expected=1 ;; esac
  same $refused $expected "$name: train --carry-state is refused"
  "$KRAIT" inspect "$model" --tensors >tensors.txt
  "$KRAIT" inspect "$model" --batch 2 --length 24 >memory.txt
  [[ -s tensors.txt && -s memory.txt ]] || die "$name: inspect"

  # What was read and written goes on from its state; a batch is what each prompt gives alone.
  local sample=(--temperature 0.9 --seed 5 --json --quiet)
  "$KRAIT" generate "$model" --prompt "the snake" --max-new 12 "${sample[@]}" >all.json
  same "$(tokens all.json | tr ',' '\n' | wc -l)" 12 "$name: new tokens"
  "$KRAIT" generate "$model" --prompt "the snake" --max-new 5 "${sample[@]}" --state-out s.safetensors >first.json
  "$KRAIT" generate "$model" --state-in s.safetensors --max-new 7 "${sample[@]}" >rest.json
  same "$(tokens first.json),$(tokens rest.json)" "$(tokens all.json)" "$name: tokens from the state"
  "$KRAIT" generate "$model" --prompt a --prompt "the snake" --max-new 12 "${sample[@]}" >batch.json
  sed -n 2p batch.json >second.json
  same "$(tokens second.json)" "$(tokens all.json)" "$name: a row of a batch"

  # Likelihood, and the same in bfloat16 to 2%.
  "$KRAIT" eval "$model" --data ../short.txt --json --quiet >eval.json
  same "$(key eval.json tokens)" 120 "$name: tokens of eval"
  "$KRAIT" eval "$model" --data ../short.txt --dtype bfloat16 --json --quiet >bf16.json
  awk -v a="$(key eval.json nll)" -v b="$(key bf16.json nll)" \
    'BEGIN { exit !(a > 0 && a < 6 && b > 0.98 * a && b < 1.02 * a) }' ||
    die "$name: nll $(key eval.json nll), in bfloat16 $(key bf16.json nll)"

  # Logits, bit for bit through each layout that the architecture has.
  "$KRAIT" logits "$model" --tokens ../ids.npy --out logits.npy
  "$KRAIT" logits "$model" --tokens ../ids.npy --out last.npy --last
  same "$(tail -c 1024 logits.npy | cksum)" "$(tail -c 1024 last.npy | cksum)" "$name: logits --last"
  for layout in huggingface original; do
    if ! "$KRAIT" convert "$model" $layout --layout $layout >/dev/null 2>err.txt; then
      grep -q 'layout' err.txt || die "$name: convert to $layout: $(cat err.txt)"
      [[ ! -e $layout ]] || die "$name: a refused convert left $layout"
      continue
    fi
    converted=$((converted + 1))
    "$KRAIT" convert $layout back-$layout --layout "$(key inspect.json layout | tr -d '"')" >/dev/null
    for m in $layout back-$layout; do
      "$KRAIT" logits $m --tokens ../ids.npy --out $m.npy
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

# Sequences that a model cannot be trained on.
for limit in s4:64 moe_mamba:128; do
  if train 200 --model "$configs/${limit%:*}.json" --out long --steps 1 >/dev/null 2>err.txt; then
    die "${limit%:*} was trained on sequences of 200 tokens"
  fi
  grep -q "at most ${limit#*:} tokens" err.txt || die "${limit%:*}: $(cat err.txt)"
done
echo "${#names[@]} architectures through the command line: all as it should be ($((SECONDS - start)) s)"
