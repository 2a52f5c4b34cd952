#!/usr/bin/env bash
# Models that judge images, texts and series as a whole, from the outside: train, resume, eval, logits, inspect,
# convert; and what must be refused.
source "$(dirname "$0")/../support/e2e.sh"
corpus=$tests/corpus

# array TYPE SHAPE: the header of a .npy; the numbers follow on stdin.
array() {
  printf '\x93NUMPY\x01\x00\x76\x00%-117s\n' "{'descr': '$1', 'fortran_order': False, 'shape': $2, }"
  cat
}
# picture LEVEL: 20 x 20 pixels of one grey (an octal number).
picture() { head -c 1200 /dev/zero | tr '\0' "\\$1" | array '|u1' '(20, 20, 3)'; }

# ---- images: dark and bright ones, a folder for each class
mkdir -p images/train/dark images/train/bright images/valid/dark images/valid/bright
for i in 1 2 3 4; do
  picture "0${i}0" >images/train/dark/$i.npy
  picture "3${i}0" >images/train/bright/$i.npy
done
picture 044 >images/valid/dark/a.npy
picture 344 >images/valid/bright/a.npy
echo '{"model_type": "vim", "image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 2,
       "num_classes": 2}' >vim.json
train=(--model vim.json --data images/train --valid images/valid --batch-size 4 --lr 3e-3 --seed 1
       --drop-path 0.2 --label-smoothing 0.1 --crop-scale 0.3 --hflip 0.5 --quiet)
"$KRAIT" train "${train[@]}" --out whole --steps 30 >/dev/null
"$KRAIT" train "${train[@]}" --out parts --steps 12 >/dev/null
"$KRAIT" train --resume parts --steps 30 --quiet >/dev/null
same "$(losses parts)" "$(losses whole)" "losses of a resumed run"
cmp whole/last/model.safetensors parts/last/model.safetensors || die "weights of a resumed run"
tail -1 whole/log.jsonl | grep -q '"valid_accuracy":1.0' || die "accuracy in the log"
"$KRAIT" eval whole/best --data images/valid --json >eval.json
same "$(key eval.json accuracy)" 1.0 "accuracy of images"
same "$(key eval.json examples)" 2 "images judged"
"$KRAIT" inspect whole/best --json >inspect.json
same "$(key inspect.json classes)" 2 "classes"
"$KRAIT" inspect whole/best --batch 7 >memory.txt
grep -q 'memory for batch 7 and length 5 in float32' memory.txt && grep -q '^  training, recompute .*step' memory.txt ||
  die "no memory plan of a model of images: $(cat memory.txt)"
grep -q '"1":"dark"' <(tr -d ' \n' <whole/best/config.json) || die "the names of the classes are lost"

# the same images in a list, classes by name
for class in dark bright; do
  echo "{\"image\": \"images/valid/$class/a.npy\", \"label\": \"$class\"}"
done >list.jsonl
"$KRAIT" eval whole/best --data list.jsonl --json >list.json
same "$(key list.json loss)" "$(key eval.json loss)" "loss of a list"

# the same images without a word about their classes
"$KRAIT" predict whole/best --data images/valid/bright/a.npy images/valid --json >said.jsonl
same "$(sed -E 's/.*"example":"([^"]*)","label":"([^"]*)".*/\1 \2/' said.jsonl)" \
  "images/valid/bright/a.npy bright
images/valid/bright/a.npy bright
images/valid/dark/a.npy dark" "what a model says of images"
refused 1 'vim.json: expected images: PNG' "$KRAIT" predict whole/best --data vim.json

# a preset takes the number of classes from the data; PNG and JPEG of any size
mkdir -p pictures/png pictures/jpeg
cp "$corpus"/picture/*.png pictures/png
cp "$corpus"/picture/*.jpg pictures/jpeg
"$KRAIT" train --model vim-tiny --data pictures --batch-size 1 --steps 1 --out tiny --quiet >/dev/null
"$KRAIT" inspect tiny/last --json >tiny.json
same "$(key tiny.json classes)" 2 "classes of a preset"
"$KRAIT" eval tiny/last --data pictures --json >pictures.json
same "$(key pictures.json examples)" "$(find pictures -type f | wc -l)" "pictures judged"
refused 1 'no class "jpeg"' "$KRAIT" eval whole/best --data pictures
head -c 100 "$corpus/picture/colours.png" >pictures/png/cut.png
refused 1 'cut.png: not a whole PNG' "$KRAIT" eval tiny/last --data pictures
refused 1 'a folder for each class' "$KRAIT" train --model vim-tiny --data vim.json --out no
refused 1 'drop-path' "$KRAIT" train "${train[@]}" --out no --dropout 0.1
refused 1 'crop-scale' "$KRAIT" train --model byte-tiny --data vim.json --out no --crop-scale 0.5
refused 1 'cannot go on with' "$KRAIT" train --resume parts --steps 31 --hflip 0.1
refused 1 'no images in it' "$KRAIT" train --model vim-tiny --data images/train/dark --out no
[[ ! -e no/last ]] || die "a refused run left a checkpoint"

# ---- texts of two classes
for i in $(seq 1 12); do
  echo "{\"text\": \"the cat $((i % 5)) is asleep\", \"label\": \"calm\"}"
  echo "{\"text\": \"RUN, dog $((i % 7)), run!\", \"label\": \"loud\"}"
done >texts.jsonl
texts=(--data texts.jsonl --valid texts.jsonl --batch-size 8 --lr 3e-3 --seed 1 --quiet --dropout 0.1)
for pooling in last mean token; do
  "$KRAIT" train --model byte-tiny --task classification --pooling $pooling "${texts[@]}" --steps 16 \
    --out "$pooling" >/dev/null
  "$KRAIT" eval $pooling/best --data texts.jsonl --json >$pooling.json
  same "$(key $pooling.json accuracy)" 1.0 "accuracy of texts by $pooling"
done
sed -E 's/, "label": "[^"]*"//' texts.jsonl >asked.jsonl
"$KRAIT" predict token/best --data asked.jsonl >said.txt
same "$(cut -f 1,2 said.txt)" \
  "$(sed -E 's/.*"label": "([^"]*)".*/\1/' texts.jsonl | awk '{ print "asked.jsonl:" NR "\t" $0 }')" "what a model says of texts"
"$KRAIT" train --model byte-tiny --task classification --pooling token "${texts[@]}" --steps 6 --out again >/dev/null
"$KRAIT" train --resume again --steps 16 --quiet >/dev/null
same "$(losses again)" "$(losses token)" "losses of a resumed run over texts"
printf '\1\0\0\0\2\0\0\0\3\0\0\0' | array '<i4' '(1, 3)' >ids.npy
"$KRAIT" logits mean/best --tokens ids.npy --out a.npy --json >logits.json
same "$(key logits.json shape)" '[1' "shape of outputs"
printf '\1\0\0\0\2\0\0\0\3\0\0\0' | array '<i4' '(3,)' >row.npy
"$KRAIT" logits mean/best --tokens row.npy --out row-out.npy
cmp a.npy row-out.npy || die "outputs of one row without a batch"
"$KRAIT" convert mean/best converted
"$KRAIT" logits converted --tokens ids.npy --out b.npy
cmp a.npy b.npy || die "outputs after convert"
"$KRAIT" inspect mean/best --batch 2 --length 16 --json >head.json
same "$(key head.json task),$(key head.json pooling),$(key head.json classes)" '"classification","mean",2' "what the head is"
refused 1 'sequences as a whole and predicts no tokens' "$KRAIT" generate mean/best --prompt x
echo '{"text": "x", "label": "odd"}' >odd.jsonl
refused 1 'no class "odd"' "$KRAIT" eval mean/best --data odd.jsonl
echo '{"text": "x", "label": 7}' >seventh.jsonl
refused 1 'the model says 2 classes, the data has 8' "$KRAIT" eval mean/best --data seventh.jsonl

# from a language model's weights, with a new head
"$KRAIT" train --model byte-tiny --data texts.jsonl --steps 2 --batch-size 1 --seq-len 32 --out lm --quiet >/dev/null
"$KRAIT" train --from lm/last --task classification "${texts[@]}" --steps 2 --out tuned >/dev/null
"$KRAIT" inspect tuned/last --tensors | grep -q score.weight || die "no head"

# ---- series: the target is twice the last value
for i in $(seq 0 19); do
  x=$((i % 10))
  echo "{\"values\": [[0, 1], [0.$((9 - x)), 0], [0.$x, 0.5]], \"target\": $(((2 * x) / 10)).$(((2 * x) % 10))}"
done >series.jsonl
"$KRAIT" train --model byte-tiny --task regression --data series.jsonl --batch-size 10 --lr 3e-3 --steps 60 \
  --out series --seed 1 --quiet >/dev/null
if grep -q accuracy series/log.jsonl; then die "accuracy of numbers"; fi
"$KRAIT" eval series/last --data series.jsonl --json >r.json
[[ $(key r.json r2) == 0.9* ]] || die "R² of series: $(cat r.json)"
echo '{"values": [[0, 1], [0.4, 0], [0.5, 0.5]]}' >ask.jsonl
"$KRAIT" predict series/last --data ask.jsonl --json >said.json
[[ $(key said.json target) =~ ^(0\.[89]|1\.[012]) ]] || die "what a model says of a series: $(cat said.json)"
refused 1 'krait generate goes on' "$KRAIT" predict lm/last --data asked.jsonl
printf '\0\0\0\0\0\0\200?\0\0\0?\0\0\0?' | array '<f4' '(1, 2, 2)' >x.npy
"$KRAIT" logits series/last --input x.npy --out y.npy
same "$(stat -c %s y.npy)" 132 "size of a number"
refused 1 'predicts no tokens' "$KRAIT" generate series/last --prompt x
refused 1 'predicts no tokens' "$KRAIT" generate whole/best --prompt x
refused 1 'carry-state' "$KRAIT" train --model vim.json --data images/train --out no --carry-state
refused 1 'reads --input' "$KRAIT" logits series/last --tokens ids.npy --out z.npy
echo '{"values": [[1, 2, 3]], "target": 1}' >wide.jsonl
refused 1 'vectors of 2 numbers, the data has series of vectors of 3' "$KRAIT" eval series/last --data wide.jsonl
