#!/usr/bin/env bash
# Whatever happens around a run, what was saved stays: a kill in the middle, a full disk, a folder that may
# not be written. And what is too short: documents and prompts of no token and of one.
source "$(dirname "$0")/../support/e2e.sh"
pid=
trap 'kill -KILL $pid 2>/dev/null || true; chmod -R u+w "$work"; rm -rf "$work"' EXIT
chmod 755 "$work"
cp "$KRAIT" krait # where any user can run it
K=$work/krait

steps() { if [[ -f $1/log.jsonl ]]; then wc -l <"$1/log.jsonl"; else echo 0; fi; }
sums() { (cd "$1" && find . -type f -exec cksum {} + | sort -k3); }

for i in $(seq 300); do echo "line $((i * i % 97)): the cat sat on the mat, the dog on the log."; done >text.txt
common=(--model byte-tiny --data text.txt --batch-size 2 --seq-len 32 --lr 3e-3 --seed 5 --threads 1 --quiet)
"$K" train "${common[@]}" --out whole --steps 40 >/dev/null

# ---- killed, again and again, while it saves after every step: the last checkpoint is whole, and the run
# ---- that goes on from it is the run that was never killed
"$K" train "${common[@]}" --out killed --steps 40 --save-every 1 >/dev/null &
pid=$!
for round in 1 2 3 4; do
  before=$(steps killed)
  for _ in $(seq 3000); do
    (($(steps killed) >= before + 3)) && break
    sleep 0.01
  done
  sleep 0.0$((RANDOM % 10))
  kill -KILL $pid 2>/dev/null || true
  wait $pid 2>/dev/null || true
  "$K" inspect killed/last --json >/dev/null || die "after kill $round the checkpoint does not load"
  "$K" train --resume killed --quiet >/dev/null &
  pid=$!
done
wait $pid || die "the last resume failed"
pid=
diff <(losses whole) <(losses killed) || die "the killed run has other losses"
cmp whole/last/model.safetensors killed/last/model.safetensors || die "the killed run has other weights"

# ---- a disk that is full (here: files may not grow beyond 64 KiB): one message, and nothing is lost
before=$(sums whole/last)
# Beyond the limit a write fails as on a full disk, where the signal is ignored.
full() { (trap '' XFSZ && ulimit -f 64 && exec "$@"); }
refused 1 'cannot write whole/last' full "$K" train --resume whole --steps 44 --quiet
[[ $(sums whole/last) == "$before" ]] || die "a full disk changed the checkpoint"
refused 1 'cannot write' full "$K" convert whole/last converted
[[ ! -e converted ]] || die "a full disk left half a model"
[[ -z $(find . -name '*.part*') ]] || die "left behind: $(find . -name '*.part*')"
"$K" train --resume whole --steps 41 --quiet >/dev/null || die "no resume after the disk was full"

# ---- lengths 0 and 1
printf a | "$K" tokenize --tokenizer bytes --out one.npy
printf '' | "$K" tokenize --tokenizer bytes --out none.npy
"$K" logits whole/last --tokens one.npy --out logits.npy || die "logits of one token"
[[ $(wc -c <logits.npy) == $((128 + 256 * 4)) ]] || die "one token gave $(wc -c <logits.npy) bytes of logits"
refused 1 'none.npy' "$K" logits whole/last --tokens none.npy --out none-logits.npy
: >empty.txt
printf a >one.txt
printf ab >two.txt
refused 1 'nothing to predict' "$K" eval whole/last --data empty.txt
refused 1 'nothing to predict' "$K" eval whole/last --data one.txt
"$K" eval whole/last --data two.txt --json >two.json
grep -q '"tokens":2' two.json || die "eval of two bytes"
refused 1 'no tokens in empty.txt' "$K" train --model byte-tiny --data empty.txt --out none --steps 1
refused 1 'needs 2' "$K" train --model byte-tiny --data one.txt --out none --steps 1 --seq-len 1 --batch-size 1
"$K" train --model byte-tiny --data two.txt --out two --steps 1 --seq-len 1 --batch-size 1 --quiet >/dev/null ||
  die "training on two bytes"
[[ ! -e none && ! -e none-logits.npy ]] || die "a refused command left a file"

# ---- folders that may not be written: read from, refused for writing, unchanged
"$K" generate whole/last --prompt "the" --max-new 2 --temperature 0 --state-out s.safetensors --json >expected.json
reader=()
if [[ $(id -u) == 0 ]]; then # root may write anywhere
  reader=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
  "${reader[@]}" true 2>/dev/null || reader=(none)
fi
if [[ ${reader[*]} == none ]]; then
  echo "skipped: root cannot become nobody here, so that no folder is read-only" >&2
else
  chmod -R a+rX,a-w whole
  chmod a-w .
  before=$(sums whole)
  "${reader[@]}" "$K" generate whole/last --prompt "the" --max-new 2 --temperature 0 --json |
    cmp <(sed -E 's/"(prefill|decode)_s.*//' expected.json) <(sed -E 's/"(prefill|decode)_s.*//' /dev/stdin) ||
    die "a read-only model generates something else"
  ro() { # refused, run by the reader
    local code=$1 part=$2 got=0
    shift 2
    local message
    message=$("${reader[@]}" "$@" 2>&1 </dev/null) || got=$?
    [[ $got == "$code" && $(wc -l <<<"$message") == 1 && $message == *"$part"* ]] ||
      die "$* in a read-only folder exited $got: $message"
  }
  ro 1 'Permission denied' "$K" train --resume whole --steps 50 --quiet
  ro 1 'Permission denied' "$K" train "${common[@]}" --out whole/last/run --steps 2
  ro 1 'Permission denied' "$K" convert whole/last whole/converted
  ro 1 'Permission denied' "$K" logits whole/last --tokens one.npy --out whole/logits.npy
  ro 1 'Permission denied' "$K" generate whole/last --prompt a --max-new 1 --json --state-out whole/s.safetensors
  chmod u+w .
  [[ $(sums whole) == "$before" ]] || die "a read-only folder was changed"
  chmod -R u+w whole
fi
echo "trouble: nothing was lost"
