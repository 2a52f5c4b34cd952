#!/usr/bin/env bash
# traps.sh ROOT: each trap of docs/numerics.md that Krait can fall into has a test with its number in its name.
set -uo pipefail
root=$1
bad=0
mapfile -t wanted < <(sed -n '/^## Traps/,/^## /p' "$root/docs/numerics.md" | grep -oE '^\|( T[0-9]+)+' | grep -oE 'T[0-9]+')
names=$(grep -rhoE '(TEST[_PF]*\(|add\(|fmt::format\().*T[0-9]+_.*' "$root/src" "$root/tests" --include='*.cpp')
for trap in "${wanted[@]}"; do
  grep -qE "\b${trap}_|_${trap}_" <<<"$names" || {
    echo "$trap: no test has it in its name" >&2
    bad=1
  }
done
echo "${#wanted[@]} traps looked for"
((${#wanted[@]} > 20)) || bad=1
exit $bad
