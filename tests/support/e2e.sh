#!/usr/bin/env bash
# What the scripts of tests/e2e begin with: sourced by each, first. It leaves them in an empty folder, which goes when they end.
set -euo pipefail
: "${KRAIT:?the program to test}"
tests=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

die() {
  echo "FAILED: $*" >&2
  exit 1
}
same() { [[ $1 == "$2" ]] || die "$3: expected '$2', got '$1'"; }
# key FILE NAME: the first value of a key in one line of JSON, as it stands there.
key() { grep -oE "\"$2\":(\"[^\"]*\"|[^,}]*)" "$1" | sed -n '1s/^[^:]*://p'; }
# losses RUN: those of its log, a line a step.
losses() { sed -E 's/.*"loss":([^,]*),.*/\1/' "$1/log.jsonl"; }
# refused CODE "part of the message" COMMAND...: one message on stderr, nothing on stdout.
refused() {
  local code=$1 part=$2 got=0
  shift 2
  "$@" >out 2>err </dev/null || got=$?
  same "$got" "$code" "exit code of: $* ($(cat err))"
  same "$(grep -c . err)" 1 "lines on stderr of: $* ($(cat err))"
  grep -qF -- "$part" err || die "$*: '$part' is not in: $(cat err)"
  [[ ! -s out ]] || die "$*: wrote to stdout: $(cat out)"
}
