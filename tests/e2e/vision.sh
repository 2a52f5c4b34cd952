#!/usr/bin/env bash
# Models of images from the outside, with the golden checkpoint of Vision Mamba: inspect, convert, logits.
golden=${KRAIT_GOLDEN:-$(dirname "$0")/../../../shared/golden}
checkpoint=$golden/vim/model/checkpoint.pth
if [[ ! -f $checkpoint ]]; then
  echo "skipped: no golden files: set KRAIT_GOLDEN"
  exit 77
fi
checkpoint=$(realpath "$checkpoint")
source "$(dirname "$0")/../support/e2e.sh"

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

refused 1 'no preset is named "vim-tin"; known: ' "$KRAIT" inspect vim-tin
grep -q vim-tiny err || die "the presets that are known: $(cat err)"
images '(1, 3, 16, 32)' $((3 * 16 * 32 * 4)) >small.npy
refused 1 'krait convert makes a model of another --image-size' "$KRAIT" logits "$checkpoint" --input small.npy --out x.npy
grep -q '32, 32' err || die "the size that was expected: $(cat err)"
refused 1 'float32' "$KRAIT" logits "$checkpoint" --input a.npy --out x.npy
[[ ! -e x.npy ]] || die "a refused call left a file"
