#!/usr/bin/env bash
# layer_order.sh COMPILER SRC LAYERS: LAYERS has a line a layer, in their order: its name and the
# include folders that the build gives it. To include from a layer that it may not see must fail to
# compile ("No such file"), and a header of each that it may see must be in reach.
set -uo pipefail
compiler=$1 src=$2 layers=$3
bad=0

# The order of docs/house.md, written down a second time on purpose: each layer, then all that it may see.
declare -A may=(
  [base]="" [tensor]="base" [autograd]="base tensor" [ops]="base tensor autograd"
  [nn]="base tensor autograd ops" [models]="base tensor autograd ops nn"
  [io]="base tensor autograd ops nn models" [data]="base tensor autograd ops nn models io"
  [train]="base tensor autograd ops nn models io data"
  [infer]="base tensor autograd ops nn models io data"
  [capi]="base tensor autograd ops nn models io data infer"
  [cli]="base tensor autograd ops nn models io data train infer"
)

says() {  # SOURCE FOLDER...: what the compiler says of it
  local source=$1 flags=()
  shift
  for folder in "$@"; do flags+=(-I "$folder"); done
  printf '%s\n' "$source" | "$compiler" -std=c++20 -fopenmp -E -x c++ "${flags[@]}" - 2>&1 >/dev/null
}

checked=0
while read -r layer folders; do
  [[ -v may[$layer] ]] || { echo "layer $layer is not in the order"; bad=1; continue; }
  for other in "${!may[@]}"; do
    header=$(cd "$src" && find "$other" -name '*.h' 2>/dev/null | sort | head -1)
    [[ -z $header || $other == "$layer" ]] && continue
    if [[ " ${may[$layer]} " == *" $other "* ]]; then
      # shellcheck disable=SC2086
      said=$(says "#if !__has_include(\"krait/$header\")"$'\n#error\n#endif' $folders)
      [[ -z $said ]] || { echo "$layer must see krait/$header, but does not"; bad=1; }
    else
      # shellcheck disable=SC2086
      said=$(says "#include \"krait/$header\"" $folders)
      [[ $said == *"No such file"* || $said == *"file not found"* ]] ||
        { echo "$layer must not see krait/$header, but includes it"; bad=1; }
    fi
    checked=$((checked + 1))
  done
done <"$layers"
echo "$checked pairs of layers checked"
((checked > 10)) || bad=1
exit $bad
