#!/usr/bin/env bash
# Models of images from the outside, with the golden checkpoint of Vision Mamba: inspect, convert, logits.
set -euo pipefail
: "${KRAIT:?the program to test}"
golden=${KRAIT_GOLDEN:-$(dirname "$0")/../../../shared/golden}
checkpoint=$golden/vim/model/checkpoint.pth
if [[ ! -f $checkpoint ]]; then
  echo "skipped: no golden files: set KRAIT_GOLDEN"
  exit 77
fi
checkpoint=$(realpath "$checkpoint")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

die() {
  echo "FAILED: $*" >&2
  exit 1
}
# key FILE NAME: its first value, which is that of the object itself.
key() { grep -oE "\"$2\":(\"[^\"]*\"|[^,}]*)" "$1" | head -1 | sed 's/^[^:]*://'; }
# images SHAPE BYTES: a .npy of float32 zeros on stdout.
images() {
  local header="{'descr': '<f4', 'fortran_order': False, 'shape': $1, }"
  printf '\x93NUMPY\x01\x00\x76\x00%-117s\n' "$header"
  head -c "$2" /dev/zero
}

"$KRAIT" inspect "$checkpoint" --json >inspect.json
[[ $(key inspect.json architecture) == '"vim"' && $(key inspect.json parameters) == 113002 ]] || die inspect
"$KRAIT" inspect vim-tiny --json >tiny.json
"$KRAIT" convert "$checkpoint" folder
"$KRAIT" inspect folder/config.json --json >config.json # by itself
[[ $(key config.json architecture) == '"vim"' && $(key config.json parameters) == 113002 ]] || die "inspect of a config"
[[ $(key tiny.json parameters) == 7148008 && $(key tiny.json tokens) == 197 ]] || die "inspect of a preset"

images '(9, 3, 32, 32)' $((9 * 3 * 32 * 32 * 4)) >images.npy
"$KRAIT" logits "$checkpoint" --input images.npy --out a.npy --json >logits.json
[[ $(stat -c %s a.npy) == $((128 + 9 * 10 * 4)) ]] || die "size of the logits"
"$KRAIT" logits folder --input images.npy --out b.npy
cmp a.npy b.npy || die "logits after convert"
"$KRAIT" logits "$checkpoint" --ema --input images.npy --out ema.npy
cmp -s a.npy ema.npy && die "--ema gave the same logits"

"$KRAIT" convert "$checkpoint" larger --image-size 48
images '(1, 3, 48, 48)' $((3 * 48 * 48 * 4)) >larger.npy
"$KRAIT" logits larger --input larger.npy --out larger_logits.npy
"$KRAIT" inspect larger --json >larger.json
[[ $(key larger.json image_size) == 48 ]] || die "the size of resized positions"

refuse() {
  local what=$1
  shift
  if "$KRAIT" "$@" >out 2>err; then die "accepted: $*"; fi
  grep -q -- "$what" err || die "$*: no '$what' in: $(cat err)"
}
refuse 'no preset is named "vim-tin"; known: .*vim-tiny' inspect vim-tin
images '(1, 3, 16, 32)' $((3 * 16 * 32 * 4)) >small.npy
refuse '32, 32.*krait convert makes a model of another --image-size' logits "$checkpoint" --input small.npy --out x.npy
refuse 'float32' logits "$checkpoint" --input a.npy --out x.npy
[[ ! -e x.npy ]] || die "a refused call left a file"
