#!/usr/bin/env bash
# krait train from the outside: a run, stopped by a signal, resumed, equal to one that never stopped;
# exit codes, streams, and what is refused.
source "$(dirname "$0")/../support/e2e.sh"

# The exit code of a command; its streams are left in out and err.
code() { local rc=0; "$@" >out 2>err || rc=$?; echo "$rc"; }

for i in $(seq 400); do echo "line $((i * i % 97)): the cat sat on the mat, the dog on the log."; done >text.txt
common=(--model byte-tiny --data text.txt --valid text.txt --batch-size 2 --seq-len 32 --lr 3e-3
        --dropout 0.1 --eval-every 0 --save-every 0 --seed 5 --threads 2)

# A run: one JSON object on stdout, the log's keys, models in last/ and best/.
[[ $(code "$KRAIT" train "${common[@]}" --out whole --steps 12 --json) == 0 ]] || die "train: $(cat err)"
[[ $(wc -l <out) == 1 ]] && grep -q '"steps":12' out || die "stdout: $(cat out)"
[[ $(wc -l <whole/log.jsonl) == 12 ]] || die "log.jsonl has not 12 lines"
for key in step loss grad_norm lr tokens tokens_per_s seconds; do
  head -1 whole/log.jsonl | grep -q "\"$key\":" || die "no $key in log.jsonl"
done
tail -1 whole/log.jsonl | grep -q '"valid_loss":' || die "no valid_loss"
for f in config.toml last/config.json last/model.safetensors last/trainer.safetensors best/model.safetensors; do
  [[ -s whole/$f ]] || die "no whole/$f"
done

# A sample of a model that knows nothing yet is text, all the same.
"$KRAIT" train --model byte-tiny --data text.txt --out young --steps 3 --batch-size 1 --seq-len 8 --sample-every 1 \
  --sample-prompt a >out 2>err
grep -q 'sample after step 3: a' err || die "no sample: $(cat err)"
iconv -f UTF-8 -t UTF-8 err >out || die "a sample is not UTF-8"

# The copy of the log goes where stdout goes, before the result.
"$KRAIT" train "${common[@]}" --out aside --steps 2 --quiet --json --log /dev/stdout >out
head -2 out | cmp -s - aside/log.jsonl || die "--log /dev/stdout: $(cat out)"
same "$(wc -l <out)" 3 "lines of --log /dev/stdout and --json"

# Stopped by a signal in the middle: exit 130, saved; resumed: the same run, bit for bit.
"$KRAIT" train "${common[@]}" --out parts --steps 100000 --quiet >/dev/null 2>err &
pid=$!
for _ in $(seq 300); do
  [[ -f parts/log.jsonl && $(wc -l <parts/log.jsonl) -ge 3 ]] && break
  sleep 0.1
done
kill -TERM $pid
rc=0; wait $pid || rc=$?
[[ $rc == 130 ]] || die "SIGTERM: exit code $rc: $(cat err)"
done_steps=$(wc -l <parts/log.jsonl)
grep -q "\"step\": $done_steps" parts/last/trainer.json || die "the checkpoint is not that of step $done_steps"
if ((done_steps < 12)); then
  [[ $(code "$KRAIT" train --resume parts --steps 12) == 0 ]] || die "resume: $(cat err)"
  cmp -s whole/last/model.safetensors parts/last/model.safetensors || die "resumed weights differ"
fi
diff <(losses whole) <(losses parts | head -12) || die "resumed losses differ"

# A terminal that goes away is a signal, too.
env --default-signal=HUP "$KRAIT" train "${common[@]}" --out hung --steps 100000 --quiet >/dev/null 2>err &
pid=$!
for _ in $(seq 300); do
  [[ -s hung/log.jsonl ]] && break
  sleep 0.1
done
kill -HUP $pid
rc=0; wait $pid || rc=$?
[[ $rc == 130 && -s hung/last/model.safetensors ]] || die "SIGHUP: exit code $rc: $(cat err)"

# What is typed goes before what the file says of the same thing; a file or a command line cannot say both.
sed 's/^steps = .*/epochs = 2.0/' whole/config.toml >epochs.toml
[[ $(code "$KRAIT" train --config epochs.toml --steps 3 --out typed --json) == 0 ]] || die "--steps over epochs: $(cat err)"
grep -q '"steps":3,' out || die "--steps over epochs: $(cat out)"
refused 2 "--steps excludes --epochs" "$KRAIT" train "${common[@]}" --steps 3 --epochs 1 --out both

# Where no step is left there is no loss of one.
[[ $(code "$KRAIT" train --resume whole --json) == 0 ]] || die "resume of a run that is done: $(cat err)"
grep -q '"steps":12,"loss":null,.*"tokens":null,' out || die "resume of a run that is done: $(cat out)"

# config.toml is enough to run again.
[[ $(code "$KRAIT" train --config whole/config.toml --threads 2 --out again) == 0 ]] || die "again: $(cat err)"
diff <(losses whole) <(losses again) || die "the run from config.toml differs"

# Text by stdin; one-token sequences.
[[ $(code "$KRAIT" train --model byte-tiny --data - --out stdin --steps 2 --seq-len 1 <text.txt) == 0 ]] || die "stdin: $(cat err)"

# Plots.
[[ $(code "$KRAIT" plot whole parts --out two.svg) == 0 && $(head -c 5 two.svg) == "<svg " ]] || die "plot: $(cat err)"
[[ $(code "$KRAIT" plot whole) == 0 && -s out ]] || die "plot in the terminal"
refused 1 nothing-there "$KRAIT" plot nothing-there

# What is refused, and how.
new=(--out none --steps 2)
refused 2 "--model" "$KRAIT" train --data text.txt "${new[@]}"
refused 2 "--data" "$KRAIT" train --model byte-tiny "${new[@]}"
refused 2 "--out" "$KRAIT" train --model byte-tiny --data text.txt
refused 2 "--seq-len" "$KRAIT" train --model byte-tiny --data text.txt "${new[@]}" --seq-len 0
refused 2 "--carry-state" "$KRAIT" train --model byte-tiny --data text.txt "${new[@]}" --carry-state --order shuffle
refused 2 "--lr: expected a number from 0 on, got -1" "$KRAIT" train --model byte-tiny --data text.txt "${new[@]}" --lr -1
refused 2 "--eps: expected a number above 0, got nan" "$KRAIT" train --model byte-tiny --data text.txt "${new[@]}" --eps nan
refused 2 "--lr: expected a number from 0 on, got inf" "$KRAIT" train --model byte-tiny --data text.txt "${new[@]}" --lr inf
refused 2 "--dropout: expected a number from 0 to 0.999, got nan" "$KRAIT" train --model byte-tiny --data text.txt "${new[@]}" --dropout nan
refused 2 "--crop-scale: expected a number above 0" "$KRAIT" train --model byte-tiny --data text.txt "${new[@]}" --crop-scale 0
refused 2 "--betas: expected numbers from 0 to below 1" "$KRAIT" train --model byte-tiny --data text.txt "${new[@]}" --betas 0.9,nan
refused 2 "--schedule: step not in {" "$KRAIT" train --model byte-tiny --data text.txt "${new[@]}" --schedule step
refused 2 "--schedule: 2 not in {" "$KRAIT" train --model byte-tiny --data text.txt "${new[@]}" --schedule 2
refused 2 "--seed" "$KRAIT" train --model byte-tiny --data text.txt "${new[@]}" --seed -1
refused 2 "--seed" "$KRAIT" train --model byte-tiny --data text.txt "${new[@]}" --seed 9223372036854775808
refused 2 "--betas" "$KRAIT" train --model byte-tiny --data text.txt "${new[@]}" --betas 0.9
refused 1 "byte-small" "$KRAIT" train --model no-such-preset --data text.txt "${new[@]}"
refused 1 "missing.txt" "$KRAIT" train --model byte-tiny --data missing.txt "${new[@]}"
refused 1 "there is a run already" "$KRAIT" train "${common[@]}" --out whole --steps 2
refused 1 "no-run: expected the folder of a run" "$KRAIT" train --resume no-run
before=$(cksum <whole/config.toml)
refused 2 "--model cannot name mamba2-byte-small" "$KRAIT" train --resume whole --model mamba2-byte-small
refused 2 "--from cannot name whole/last" "$KRAIT" train --resume whole --from whole/last
[[ $(cksum <whole/config.toml) == "$before" ]] || die "a refused run changed config.toml"
refused 1 "seq-len 32" "$KRAIT" train --resume whole --seq-len 16
refused 1 "GB are available" "$KRAIT" train --model mamba-2.8b --data text.txt --tokenizer bytes "${new[@]}" \
  --batch-size 4096 --seq-len 65536
printf 'good\nbad \xff\n' >bad.txt
refused 1 "bad.txt:2" "$KRAIT" train --model byte-tiny --data bad.txt "${new[@]}"
printf '{"text": "a"}\n{"txt": "b"}\n' >bad.jsonl
refused 1 "bad.jsonl:2" "$KRAIT" train --model byte-tiny --data bad.jsonl "${new[@]}"
[[ ! -e none ]] || die "a refused run left a directory"

# A loss that is not finite: named, and the checkpoint before is kept.
cp whole/last/model.safetensors before
refused 1 "backbone." "$KRAIT" train --resume whole --steps 60 --lr 1e30 --quiet
cmp -s before whole/last/model.safetensors || die "the good checkpoint was replaced"
echo "krait train: all as it should be"
