#!/usr/bin/env bash
# krait train from the outside: a run, stopped by a signal, resumed, equal to one that never stopped;
# exit codes, streams, and what is refused.
set -euo pipefail
K=${KRAIT:?the program to test}
T=$(mktemp -d)
trap 'rm -rf "$T"' EXIT
cd "$T"

fail() { echo "FAILED: $*" >&2; exit 1; }
# The exit code of a command; its streams are left in out and err.
code() { local rc=0; "$@" >out 2>err || rc=$?; echo "$rc"; }
losses() { sed -E 's/.*"loss":([^,]*),.*/\1/' "$1/log.jsonl"; }
# Exit code $1, and one message on stderr that contains $2.
refused() {
  local want=$1 part=$2; shift 2
  local rc; rc=$(code "$@")
  [[ $rc == "$want" ]] || fail "$* exited $rc instead of $want: $(cat err)"
  [[ ! -s out ]] || fail "$* wrote to stdout: $(cat out)"
  [[ $(wc -l <err) == 1 ]] || fail "$* gave more than one line: $(cat err)"
  grep -qF -- "$part" err || fail "$* said: $(cat err)"
}

for i in $(seq 400); do echo "line $((i * i % 97)): the cat sat on the mat, the dog on the log."; done >text.txt
common=(--model byte-tiny --data text.txt --valid text.txt --batch-size 2 --seq-len 32 --lr 3e-3
        --dropout 0.1 --eval-every 0 --save-every 0 --seed 5 --threads 2)

# A run: one JSON object on stdout, the log's keys, models in last/ and best/.
[[ $(code "$K" train "${common[@]}" --out whole --steps 12 --json) == 0 ]] || fail "train: $(cat err)"
[[ $(wc -l <out) == 1 ]] && grep -q '"steps":12' out || fail "stdout: $(cat out)"
[[ $(wc -l <whole/log.jsonl) == 12 ]] || fail "log.jsonl has not 12 lines"
for key in step loss grad_norm lr tokens tokens_per_s seconds; do
  head -1 whole/log.jsonl | grep -q "\"$key\":" || fail "no $key in log.jsonl"
done
tail -1 whole/log.jsonl | grep -q '"valid_loss":' || fail "no valid_loss"
for f in config.toml last/config.json last/model.safetensors last/trainer.safetensors best/model.safetensors; do
  [[ -s whole/$f ]] || fail "no whole/$f"
done

# Stopped by a signal in the middle: exit 130, saved; resumed: the same run, bit for bit.
"$K" train "${common[@]}" --out parts --steps 100000 --quiet >/dev/null 2>err &
pid=$!
for _ in $(seq 300); do
  [[ -f parts/log.jsonl && $(wc -l <parts/log.jsonl) -ge 3 ]] && break
  sleep 0.1
done
kill -TERM $pid
rc=0; wait $pid || rc=$?
[[ $rc == 130 ]] || fail "SIGTERM: exit code $rc: $(cat err)"
done_steps=$(wc -l <parts/log.jsonl)
grep -q "\"step\": $done_steps" parts/last/trainer.json || fail "the checkpoint is not that of step $done_steps"
if ((done_steps < 12)); then
  [[ $(code "$K" train --resume parts --steps 12) == 0 ]] || fail "resume: $(cat err)"
  cmp -s whole/last/model.safetensors parts/last/model.safetensors || fail "resumed weights differ"
fi
diff <(losses whole) <(losses parts | head -12) || fail "resumed losses differ"

# A terminal that goes away is a signal, too.
env --default-signal=HUP "$K" train "${common[@]}" --out hung --steps 100000 --quiet >/dev/null 2>err &
pid=$!
for _ in $(seq 300); do
  [[ -s hung/log.jsonl ]] && break
  sleep 0.1
done
kill -HUP $pid
rc=0; wait $pid || rc=$?
[[ $rc == 130 && -s hung/last/model.safetensors ]] || fail "SIGHUP: exit code $rc: $(cat err)"

# What is typed goes before what the file says of the same thing; a file or a command line cannot say both.
sed 's/^steps = .*/epochs = 2.0/' whole/config.toml >epochs.toml
[[ $(code "$K" train --config epochs.toml --steps 3 --out typed --json) == 0 ]] || fail "--steps over epochs: $(cat err)"
grep -q '"steps":3,' out || fail "--steps over epochs: $(cat out)"
refused 2 "--steps excludes --epochs" "$K" train "${common[@]}" --steps 3 --epochs 1 --out both

# Where no step is left there is no loss of one.
[[ $(code "$K" train --resume whole --json) == 0 ]] || fail "resume of a run that is done: $(cat err)"
grep -q '"steps":12,"loss":null,.*"tokens":null,' out || fail "resume of a run that is done: $(cat out)"

# config.toml is enough to run again.
[[ $(code "$K" train --config whole/config.toml --threads 2 --out again) == 0 ]] || fail "again: $(cat err)"
diff <(losses whole) <(losses again) || fail "the run from config.toml differs"

# Text by stdin; one-token sequences.
[[ $(code "$K" train --model byte-tiny --data - --out stdin --steps 2 --seq-len 1 <text.txt) == 0 ]] || fail "stdin: $(cat err)"

# Plots.
[[ $(code "$K" plot whole parts --out two.svg) == 0 && $(head -c 5 two.svg) == "<svg " ]] || fail "plot: $(cat err)"
[[ $(code "$K" plot whole) == 0 && -s out ]] || fail "plot in the terminal"
refused 1 nothing-there "$K" plot nothing-there

# What is refused, and how.
new=(--out none --steps 2)
refused 2 "--model" "$K" train --data text.txt "${new[@]}"
refused 2 "--data" "$K" train --model byte-tiny "${new[@]}"
refused 2 "--out" "$K" train --model byte-tiny --data text.txt
refused 2 "--seq-len" "$K" train --model byte-tiny --data text.txt "${new[@]}" --seq-len 0
refused 2 "--carry-state" "$K" train --model byte-tiny --data text.txt "${new[@]}" --carry-state --order shuffle
refused 2 "--lr: expected a number from 0 on, got -1" "$K" train --model byte-tiny --data text.txt "${new[@]}" --lr -1
refused 2 "--eps: expected a number above 0, got nan" "$K" train --model byte-tiny --data text.txt "${new[@]}" --eps nan
refused 2 "--lr: expected a number from 0 on, got inf" "$K" train --model byte-tiny --data text.txt "${new[@]}" --lr inf
refused 2 "--dropout: expected a number from 0 to 0.999, got nan" "$K" train --model byte-tiny --data text.txt "${new[@]}" --dropout nan
refused 2 "--crop-scale: expected a number above 0" "$K" train --model byte-tiny --data text.txt "${new[@]}" --crop-scale 0
refused 2 "--betas: expected numbers from 0 to below 1" "$K" train --model byte-tiny --data text.txt "${new[@]}" --betas 0.9,nan
refused 2 "--schedule: step not in {" "$K" train --model byte-tiny --data text.txt "${new[@]}" --schedule step
refused 2 "--schedule: 2 not in {" "$K" train --model byte-tiny --data text.txt "${new[@]}" --schedule 2
refused 2 "--seed" "$K" train --model byte-tiny --data text.txt "${new[@]}" --seed -1
refused 2 "--seed" "$K" train --model byte-tiny --data text.txt "${new[@]}" --seed 9223372036854775808
refused 2 "--betas" "$K" train --model byte-tiny --data text.txt "${new[@]}" --betas 0.9
refused 1 "byte-small" "$K" train --model no-such-preset --data text.txt "${new[@]}"
refused 1 "missing.txt" "$K" train --model byte-tiny --data missing.txt "${new[@]}"
refused 1 "there is a run already" "$K" train "${common[@]}" --out whole --steps 2
refused 1 "no-run: expected the folder of a run" "$K" train --resume no-run
before=$(cksum <whole/config.toml)
refused 2 "--model cannot name mamba2-byte-small" "$K" train --resume whole --model mamba2-byte-small
refused 2 "--from cannot name whole/last" "$K" train --resume whole --from whole/last
[[ $(cksum <whole/config.toml) == "$before" ]] || fail "a refused run changed config.toml"
refused 1 "seq-len 32" "$K" train --resume whole --seq-len 16
refused 1 "GB are available" "$K" train --model mamba-2.8b --data text.txt --tokenizer bytes "${new[@]}" \
  --batch-size 4096 --seq-len 65536
printf 'good\nbad \xff\n' >bad.txt
refused 1 "bad.txt:2" "$K" train --model byte-tiny --data bad.txt "${new[@]}"
printf '{"text": "a"}\n{"txt": "b"}\n' >bad.jsonl
refused 1 "bad.jsonl:2" "$K" train --model byte-tiny --data bad.jsonl "${new[@]}"
[[ ! -e none ]] || fail "a refused run left a directory"

# A loss that is not finite: named, and the checkpoint before is kept.
cp whole/last/model.safetensors before
refused 1 "backbone." "$K" train --resume whole --steps 60 --lr 1e30 --quiet
cmp -s before whole/last/model.safetensors || fail "the good checkpoint was replaced"
echo "krait train: all as it should be"
