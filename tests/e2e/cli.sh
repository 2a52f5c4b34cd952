#!/usr/bin/env bash
# The command line from the outside: train, resume, generate, states, eval, convert, tokenize; then what must
# be refused, each with one message, its exit code, and nothing half-written.
source "$(dirname "$0")/../support/e2e.sh"

# ---- data: two documents of words
for i in $(seq 1 400); do echo "the snake $((i % 7)) sleeps under the old tree number $((i % 13))"; done >train.txt
for i in $(seq 1 40); do echo "the snake $((i % 5)) sleeps under the old tree"; done >valid.txt
printf '{"text": "the snake sleeps under the tree"}\n{"text": "the old tree is a snake tree"}\n' >words.jsonl

# ---- train, stop, resume
common=(--data train.txt --seq-len 64 --batch-size 4 --lr 3e-3 --seed 1 --quiet)
"$KRAIT" train --model byte-tiny --out run "${common[@]}" --steps 12 >/dev/null
[[ -f run/last/config.json && -f run/last/model.safetensors ]] || die "train wrote no model"
same "$(wc -l <run/log.jsonl)" 12 "lines of the log"
model=run/last

# ---- the machine itself
"$KRAIT" --selftest >selftest.txt || die "--selftest: $(cat selftest.txt)"
grep -q 'selective_scan .*bfloat16 .*ok' selftest.txt || die "--selftest leaves the scan out"

built=$("$KRAIT" generate "$model" --prompt a --max-new 0 --device cuda 2>&1 >/dev/null || true)
devices='devices: cpu cuda'
[[ $built != *'without CUDA'* ]] || devices='devices: cpu'
same "$("$KRAIT" --version | sed -n 2p)" "$devices" "devices that --version names"

# ---- bench: every op with its passes, and sizes in a list
"$KRAIT" bench op --preset byte-tiny --length 24 --repeat 1 --json >ops.jsonl
for op in layer mixer $(cd "$tests/../src/ops" && ls -d -- */ | tr -d /); do
  grep "\"op\":\"$op\"" ops.jsonl | grep -q '"median_s":[0-9.e-]*,' || die "bench op leaves $op out"
done
same "$(grep -c '"pass":"backward"' ops.jsonl)" 26 "ops with a backward pass"
"$KRAIT" bench decode --preset byte-hybrid-tiny --context 0,40 --repeat 1 --json >decode.jsonl
same "$(wc -l <decode.jsonl)" 2 "contexts"
(($(tail -1 decode.jsonl | key /dev/stdin memory_bytes) > $(head -1 decode.jsonl | key /dev/stdin memory_bytes))) ||
  die "bench decode: keys and values of a context take no memory"
"$KRAIT" bench train --preset byte-tiny --length 8,16 --recompute layer --repeat 1 --json >bench.jsonl
"$KRAIT" bench generate --preset byte-tiny --length 8 --new 3 --repeat 1 --json >>bench.jsonl
same "$(grep -c '"tokens_per_s":[0-9.e]*,"memory_bytes":[0-9]*,' bench.jsonl)" 3 "lines of bench with memory"

# ---- help names the program as it is typed
"$KRAIT" generate --help | grep -qx 'Usage: krait generate .*MODEL' || die "generate --help: $("$KRAIT" generate --help)"

# ---- inspect
"$KRAIT" inspect "$model" --json >inspect.json
same "$(key inspect.json architecture)" '"mamba"' architecture
same "$(key inspect.json layout)" '"huggingface"' layout
"$KRAIT" inspect "$model" --tensors >tensors.txt
grep -q 'backbone.layers.0.mixer.A_log' tensors.txt || die "inspect --tensors"

# ---- generate: the same seed gives the same text; a batch gives what each prompt gives alone
sample=(--temperature 0.9 --top-k 40 --seed 5)
"$KRAIT" generate "$model" --prompt "the snake" --max-new 24 "${sample[@]}" --json >a.json
"$KRAIT" generate "$model" --prompt "the snake" --max-new 24 "${sample[@]}" --json >b.json
same "$(key b.json text)" "$(key a.json text)" "the same seed"
same "$(key a.json finish)" '"length"' finish
same "$(key a.json prompt_tokens)" 9 prompt_tokens
"$KRAIT" generate "$model" --prompt "a" --prompt "the snake" --prompt "old" --max-new 24 "${sample[@]}" --json >batch.json
same "$(wc -l <batch.json)" 3 "objects of a batch"
sed -n 2p batch.json >second.json
same "$(key second.json text)" "$(key a.json text)" "a row of a batch"
"$KRAIT" generate "$model" --prompt "the snake" --prompt "the snake" --max-new 24 "${sample[@]}" --json >twice.json
same "$(head -1 twice.json | key /dev/stdin text)" "$(key a.json text)" "the first of two copies of a prompt"
[[ $(tail -1 twice.json | key /dev/stdin text) != $(key a.json text) ]] || die "both copies of a prompt say the same"
"$KRAIT" generate "$model" --prompt "the snake" --max-new 24 "${sample[@]}" >text.txt
[[ -s text.txt ]] || die "no text"
"$KRAIT" generate "$model" --prompt "the snake" --max-new 30 --temperature 0 --stop e --json >stop.json
same "$(key stop.json finish)" '"stop"' "finish at a stop"
[[ $(key stop.json text) != *e* ]] || die "the stop was shown"

# ---- states: 8 tokens and 16 more are 24, without the prompt
"$KRAIT" generate "$model" --prompt "the snake" --max-new 8 "${sample[@]}" --json --state-out s.safetensors >first.json
"$KRAIT" generate "$model" --state-in s.safetensors --max-new 16 "${sample[@]}" --json >rest.json
same "$(key rest.json prompt_tokens)" 0 "prompt tokens of a resumed state"
tokens() { sed -E 's/.*"tokens":\[([^]]*)\].*/\1/' "$1"; }
same "$(tokens first.json),$(tokens rest.json)" "$(tokens a.json)" "resumed tokens"
narrow=("${sample[@]}" --state-dtype bfloat16 --json)
"$KRAIT" generate "$model" --prompt "the snake" --max-new 24 "${narrow[@]}" >all.json
"$KRAIT" generate "$model" --prompt "the snake" --max-new 8 "${narrow[@]}" --state-out s.safetensors >first.json
"$KRAIT" generate "$model" --state-in s.safetensors --max-new 16 "${narrow[@]}" >rest.json
same "$(tokens first.json),$(tokens rest.json)" "$(tokens all.json)" "resumed tokens of bfloat16 states"
printf 'hello\nagain\n' | "$KRAIT" generate "$model" --interactive --max-new 4 --json --quiet >turns.json
same "$(wc -l <turns.json)" 2 turns
# A conversation without a turn leaves what it began with.
"$KRAIT" generate "$model" --interactive --state-in s.safetensors --state-out kept.safetensors </dev/null
cmp s.safetensors kept.safetensors || die "a conversation without a turn changed its state"
# A penalty of what was said looks at all turns.
penalty=(--temperature 0 --repetition-penalty 1.5 --max-new 8 --json)
printf 'the snake\nagain\n' | "$KRAIT" generate "$model" --interactive "${penalty[@]}" --quiet >turns.json
ids() { printf '%s' "$1" | "$KRAIT" tokenize --tokenizer bytes | tr ' ' ','; }
"$KRAIT" generate "$model" "${penalty[@]}" >whole.json \
  --prompt-tokens "$(ids $'the snake\n'),$(head -1 turns.json | tokens /dev/stdin),$(ids $'again\n')"
same "$(tail -1 turns.json | tokens /dev/stdin)" "$(tokens whole.json)" "a penalized second turn"

# ---- eval
"$KRAIT" eval "$model" --data valid.txt --json --per-token nll.npy >eval.json
bytes=$(wc -c <valid.txt)
same "$(key eval.json tokens)" "$bytes" tokens
same "$(key eval.json bytes)" "$bytes" bytes
same "$(wc -c <nll.npy)" $((128 + 4 * (bytes - 1))) "size of nll.npy"
"$KRAIT" eval "$model" --data <(cat valid.txt) --json >piped.json
same "$(key piped.json nll)" "$(key eval.json nll)" "eval of a pipe"
# On a terminal work of more than a second says how far it is.
for _ in $(seq 1000); do cat train.txt; done >long.txt
script -qec "timeout -s INT 3 '$KRAIT' eval $model --data long.txt" /dev/null >bar.txt </dev/null || true
grep -qE "\[[#.]+\] [0-9]+/$(wc -c <long.txt) bytes, [0-9]+/s, [0-9]+ s left" bar.txt || die "no bar: $(head -c 500 bar.txt)"
"$KRAIT" eval "$model" --data words.jsonl --task lambada --json >lambada.json
grep -q '"accuracy"' lambada.json || die lambada

# ---- tokenize and logits; convert keeps every bit of them
printf 'the snake sleeps' | "$KRAIT" tokenize --tokenizer bytes --out ids.npy
same "$(printf 'tree' | "$KRAIT" tokenize --tokenizer bytes)" "116 114 101 101" tokenize
same "$(printf 'tree' | "$KRAIT" tokenize --tokenizer bytes --out tree.npy --json)" '{"out":"tree.npy","tokens":4}' "tokenize --out --json"
same "$("$KRAIT" tokenize ids.npy --tokenizer bytes --decode)" "the snake sleeps" "tokenize --decode"
"$KRAIT" logits "$model" --tokens ids.npy --out logits.npy
"$KRAIT" convert "$model" original --layout original
"$KRAIT" convert original back/ --layout huggingface
for m in original back; do
  "$KRAIT" logits "$m" --tokens ids.npy --out "$m.npy"
  cmp logits.npy "$m.npy" || die "logits of $m"
done
"$KRAIT" logits "$model" --tokens ids.npy --out last.npy --last
same "$(tail -c 1024 logits.npy | cksum)" "$(tail -c 1024 last.npy | cksum)" "logits --last"

# ---- a config file; the command line wins
printf 'max-new = 3\ntemperature = 0\nprompt = ["a", "b"]\njson = true\n' >c.toml
same "$("$KRAIT" generate "$model" --config c.toml | wc -l)" 2 "prompts of a config file"
"$KRAIT" generate "$model" --config c.toml --max-new 5 --prompt x >c.json
same "$(tokens c.json | tr ',' '\n' | wc -l)" 5 "--max-new over the config file"

# ---- resume goes on with the run, bit for bit
"$KRAIT" train --model byte-tiny --out half "${common[@]}" --steps 12 --save-every 6 >/dev/null
cmp <(sed -E 's/,"tokens_per_s.*//' run/log.jsonl) <(sed -E 's/,"tokens_per_s.*//' half/log.jsonl) || die "the same run twice"

# ---- refused
printf a >one.txt
printf 'a\xff\xfe' >latin.txt
echo 'tempo = 3' >tempo.toml
echo 'a = = 3' >broken.toml
refused 2 'no command "fly"; ' "$KRAIT" fly
refused 2 'no command "generat", did you mean generate?' "$KRAIT" generat "$model" --prompt a
refused 2 'subcommand' "$KRAIT" --json
refused 2 '--selftest stands alone' "$KRAIT" --selftest --json
refused 2 'MODEL' "$KRAIT" generate
refused 2 'krait generate has no option --promt, did you mean --prompt?' "$KRAIT" generate "$model" --promt a
refused 2 'krait eval has no option --dat, did you mean --data?' "$KRAIT" eval "$model" --dat train.txt
refused 2 'krait generate has no option --length (see' "$KRAIT" generate "$model" --prompt a --length 3
refused 2 '"more" is not expected' "$KRAIT" generate "$model" more --prompt a
refused 2 'temperature' "$KRAIT" generate "$model" --prompt a --temperature hot
refused 2 '--temperature: expected a number from 0' "$KRAIT" generate "$model" --prompt a --temperature nan
refused 2 '--top-p: expected a number above 0' "$KRAIT" generate "$model" --prompt a --top-p nan
refused 2 '--repetition-penalty' "$KRAIT" generate "$model" --prompt a --repetition-penalty nan
refused 2 '--top-p' "$KRAIT" generate "$model" --prompt a --top-p 1e-60
# A variable that is empty is no option left out, and takes no option behind it for its value.
for option in --state-in --state-out --tokenizer --config --stop --prompt-file; do
  refused 2 "$option: expected a value, got an empty one" "$KRAIT" generate "$model" --prompt a "$option" ''
  refused 2 "$option: expected a value, got an empty one" "$KRAIT" generate "$model" --prompt a $option= --max-new 1
done
refused 2 '--per-token: expected a value' "$KRAIT" eval "$model" --data valid.txt --per-token ''
refused 2 '--resume: expected a value' "$KRAIT" train --resume '' --model byte-tiny --data train.txt --out none
refused 2 'MODEL: expected a value' "$KRAIT" inspect ''
same "$("$KRAIT" generate "$model" --state-in s.safetensors --prompt= --max-new 1 --json | wc -l)" 1 "an empty prompt"
[[ ! -e --max-new && ! -e none ]] || die "an option was taken for a name"
# MODEL behind an option of many words
"$KRAIT" generate --max-new 1 --prompt a "$model" >/dev/null
refused 2 'MODEL is required; --data took every word' "$KRAIT" eval --data valid.txt "$model" --json
refused 2 "--from $model" "$KRAIT" train --model "$model" --data train.txt --out none
refused 1 'moving average' "$KRAIT" eval "$model" --data valid.txt --ema
refused 2 '--preset' "$KRAIT" bench decode --preset byte-tiny --model "$model"
refused 2 'dtype' "$KRAIT" generate "$model" --prompt a --dtype float64
refused 2 'state-dtype' "$KRAIT" generate "$model" --prompt a --state-dtype float64
refused 2 'device' "$KRAIT" generate "$model" --prompt a --device tpu
refused 1 'without CUDA' "$KRAIT" generate "$model" --prompt a --device cuda
refused 1 'nothing to continue' "$KRAIT" generate "$model"
refused 1 'empty' "$KRAIT" generate "$model" --prompt ''
refused 1 'nowhere' "$KRAIT" generate nowhere --prompt a
refused 1 'nowhere.txt' "$KRAIT" generate "$model" --prompt-file nowhere.txt
refused 1 '256' "$KRAIT" generate "$model" --prompt-tokens 1,2,256
refused 1 '-1' "$KRAIT" generate "$model" --prompt-tokens=-1
refused 1 '1,x' "$KRAIT" generate "$model" --prompt-tokens 1,x
refused 1 '99999999999999999999 is outside' "$KRAIT" generate "$model" --prompt-tokens 99999999999999999999
refused 1 'expected a model directory' "$KRAIT" generate "$model/model.safetensors" --prompt a
refused 1 'expected a model directory' "$KRAIT" inspect train.txt
refused 1 'but in run/last' "$KRAIT" inspect run
refused 1 'no such option' "$KRAIT" generate "$model" --config tempo.toml
refused 1 'line 1' "$KRAIT" generate "$model" --config broken.toml
refused 1 'nowhere.toml' "$KRAIT" generate "$model" --config nowhere.toml
refused 1 'safetensors' "$KRAIT" generate "$model" --state-in ids.npy
refused 1 '/nowhere/s' "$KRAIT" generate "$model" --prompt a --max-new 1 --json --temperature 0 --quiet --state-out /nowhere/s
refused 1 'nothing to predict' "$KRAIT" eval "$model" --data one.txt
refused 1 'nowhere: expected a model directory' "$KRAIT" eval nowhere --data one.txt
refused 1 'nowhere: expected a model directory' "$KRAIT" logits nowhere --tokens ids.npy --out x.npy
refused 1 'nowhere.txt' "$KRAIT" eval "$model" --data nowhere.txt
refused 1 'UTF-8' "$KRAIT" eval "$model" --data latin.txt
tail -c +2 "$tests/corpus/tokenizer/byte_level" >tokenizer.json # behind what the fuzz target reads
refused 1 'latin.txt:1: expected UTF-8' "$KRAIT" tokenize latin.txt --tokenizer tokenizer.json
same "$("$KRAIT" tokenize latin.txt --tokenizer bytes)" "97 255 254" "bytes that are no text"
# What cannot be written is said before the work.
refused 1 '/nowhere' timeout 60 "$KRAIT" eval "$model" --data long.txt --per-token /nowhere/x.npy
refused 1 'cannot write run: Is a directory' timeout 60 "$KRAIT" eval "$model" --data long.txt --per-token run
refused 1 'cannot write run' "$KRAIT" generate "$model" --prompt a --max-new 1000000000 --json --state-out run
refused 1 'eval.json' "$KRAIT" logits "$model" --tokens eval.json --out x.npy
refused 1 'float32' "$KRAIT" logits "$model" --tokens nll.npy --out x.npy
printf "\x93NUMPY\x01\x00\x76\x00%-117s\n\x05\x00\x00\x00" "{'descr': '<i4', 'fortran_order': False, 'shape': (), }" >number.npy
refused 1 'number.npy: expected rows of token ids' "$KRAIT" eval "$model" --data number.npy
refused 1 '/nowhere' "$KRAIT" logits "$model" --tokens ids.npy --out /nowhere/x.npy
refused 1 'already there' "$KRAIT" convert "$model" back
echo 104 256 >beyond.txt
refused 1 'beyond.txt: id 1 is 256, and no token has that id' "$KRAIT" tokenize beyond.txt --tokenizer bytes --decode
refused 1 'expected token ids' "$KRAIT" tokenize eval.json --tokenizer bytes --decode
refused 1 'preset' "$KRAIT" inspect mamba-9000b
refused 2 '0' "$KRAIT" bench prefill --preset byte-tiny --length 16,0
refused 1 'no step can have that many tokens' "$KRAIT" bench train --preset byte-tiny --batch 1073741824 --length 1073741824
refused 1 'no machine remembers that many' "$KRAIT" inspect "$model" --batch 1073741824 --length 1099511627776
refused 1 'no machine remembers that many' "$KRAIT" bench decode --preset byte-hybrid-tiny --batch 1073741824 --context 1073741824
refused 1 'memory' "$KRAIT" bench decode --preset byte-tiny --batch 1000000000
[[ ! -e x.npy ]] || die "a refused command left a file"
"$KRAIT" generate "$model" --prompt a --max-new 1 --state-out s2.safetensors --json >/dev/null
"$KRAIT" convert "$model" bf --dtype bfloat16
refused 1 'mamba-' "$KRAIT" generate bf --state-in s2.safetensors
head -c 1000 s2.safetensors >cut.safetensors
refused 1 'cut.safetensors' "$KRAIT" generate "$model" --state-in cut.safetensors

# ---- a reader that has gone, and a full disk
"$KRAIT" generate "$model" --prompt a --max-new 2000 2>err.txt | head -c 1 >/dev/null || true
[[ ! -s err.txt ]] || die "a closed pipe: $(cat err.txt)"
if [[ -w /dev/full ]]; then
  code=0
  "$KRAIT" tokenize train.txt --tokenizer bytes >/dev/full 2>err.txt || code=$?
  same "$code" 1 "exit code with a full disk"
fi

# ---- interrupted: 130, and the state is saved
interrupted() {  # COMMAND...: once it has said something
  : >said.txt
  "$KRAIT" "$@" >said.txt &
  local pid=$! code=0
  for _ in $(seq 3000); do
    [[ -s said.txt ]] && break
    sleep 0.01
  done
  kill -INT "$pid"
  wait "$pid" || code=$?
  same "$code" 130 "exit code of SIGINT, $1"
}
interrupted --selftest
interrupted generate "$model" --prompt a --max-new 100000000 --state-out int.safetensors
[[ -s int.safetensors ]] || die "no state was saved at SIGINT"
"$KRAIT" generate "$model" --state-in int.safetensors --max-new 1 --json >/dev/null
echo "e2e: all as it should be"
