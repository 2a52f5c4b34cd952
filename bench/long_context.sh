#!/usr/bin/env bash
# Long context, shown: time and memory of reading and of training against the length, and tokens/s of generation
# against the context, of a state-space model and of attention of the same size, on one GPU.
#   bench/long_context.sh OUT [KRAIT]      measures: OUT.jsonl; then the table OUT.md and the drawing OUT.svg
#   bench/long_context.sh --draw OUT       table and drawing from OUT.jsonl
# A length that does not fit into the card's memory, or takes longer than SECONDS_A_COMMAND (25), ends its row.
# WHAT (prefill train decode): which are measured. OUT.jsonl is added to.
set -euo pipefail
models=(mamba-130m transformerpp-125m)
lengths=1024,4096,16384,65536,262144,1048576
limit=${SECONDS_A_COMMAND:-25}

measure() {
  local out=$1 krait=$2 model what left
  bench() { timeout "$limit" "$krait" bench "$@" --device cuda --dtype bfloat16 --json >>"$out.jsonl" || true; }
  for what in ${WHAT:-prefill train decode}; do
    for model in "${models[@]}"; do
      case $what in
        prefill) bench prefill --preset "$model" --length $lengths --repeat 1 ;;
        decode) bench decode --preset "$model" --context $lengths --repeat 3 ;;
        train) # whole layers are kept as long as memory has room, then run again in backward
          bench train --preset "$model" --length $lengths --repeat 1
          left=$(left_of "$out.jsonl" "$model")
          [[ -z $left ]] || bench train --preset "$model" --length "$left" --recompute layer --repeat 1
          ;;
      esac
    done
  done
}

# The lengths that FILE has no training of MODEL for.
left_of() {
  awk -v lengths=$lengths -v model="$2" '
    /"bench":"train"/ && index($0, "\"" model "\"") { match($0, /"length":[0-9]+/); done[substr($0, RSTART + 9, RLENGTH - 9)] = 1 }
    END { n = split(lengths, l, ","); for (i = 1; i <= n; ++i) if (!(l[i] in done)) left = left (left ? "," : "") l[i]; print left }
  ' "$1"
}

# Flat objects, one a line, as fields: bench, model, length or context, ms, GB, tokens/s, recompute.
fields() {
  awk '
    function value(key) {
      if (!match($0, "\"" key "\":(\"[^\"]*\"|[^,}]*)")) return ""
      s = substr($0, RSTART + length(key) + 3, RLENGTH - length(key) - 3)
      gsub(/"/, "", s)
      return s
    }
    /"bench"/ {
      n = value("length") ? value("length") : value("context")
      printf "%s %s %d %.3f %.3f %.1f %s\n", value("bench"), value("model"), n, 1000 * value("median_s"), \
        value("memory_bytes") / 1e9, value("tokens_per_s"), value("recompute") ? value("recompute") : "-"
    }' "$1"
}

table() {
  fields "$1" | awk '
    function length_text(n) { return n >= 1048576 ? n / 1048576 "M" : n / 1024 "K" }
    function time_text(ms) { return ms < 1000 ? sprintf("%.3g ms", ms) : sprintf("%.3g s", ms / 1000) }
    {
      cell[$1, $2, $3] = $1 == "decode" ? sprintf("%.0f tokens/s", $6) : time_text($4) ", " sprintf("%.3g GB", $5)
      if ($7 == "layer") cell[$1, $2, $3] = cell[$1, $2, $3] " (*)"
      if (!($2 in seen)) { seen[$2] = 1; model[++models] = $2 }
      if (!($1 in measured)) measured[$1] = 1
      if (!($3 in known)) { known[$3] = 1; length_[++lengths] = $3 }
    }
    END {
      for (i = 2; i <= lengths; ++i) for (j = i; j > 1 && length_[j] < length_[j - 1]; --j) {
        t = length_[j]; length_[j] = length_[j - 1]; length_[j - 1] = t
      }
      all = split("prefill train decode", order)
      for (b = 1; b <= all; ++b) if (order[b] in measured) bench[++n] = order[b]
      name["prefill"] = "forward"; name["train"] = "forward and backward"; name["decode"] = "generation behind L tokens"
      printf "| L |"
      for (b = 1; b <= n; ++b) for (m = 1; m <= models; ++m) printf " %s, %s |", model[m], name[bench[b]]
      printf "\n|---|"
      for (b = 1; b <= n * models; ++b) printf "---|"
      print ""
      for (i = 1; i <= lengths; ++i) {
        printf "| %s |", length_text(length_[i])
        for (b = 1; b <= n; ++b) for (m = 1; m <= models; ++m) {
          c = cell[bench[b], model[m], length_[i]]
          printf " %s |", c == "" ? "–" : c
        }
        print ""
      }
    }'
}

# Four panels, both axes by powers of ten.
drawing() {
  fields "$1" | awk '
    function log10(x) { return log(x) / log(10) }
    function add(panel, curve, x, y) {
      if (!((panel, curve) in count)) { curves[panel] = curves[panel] " " curve }
      i = ++count[panel, curve]; X[panel, curve, i] = log10(x); Y[panel, curve, i] = log10(y)
      if (!(panel in low) || log10(y) < low[panel]) low[panel] = log10(y)
      if (!(panel in high) || log10(y) > high[panel]) high[panel] = log10(y)
    }
    function floor(x) { return int(x) - (x < int(x)) }
    function power(k) {
      if (k < 0) return sprintf("%g", 10 ^ k)
      return k >= 6 ? 10 ^ (k - 6) "M" : k >= 3 ? 10 ^ (k - 3) "k" : 10 ^ k
    }
    function draw(panel, title, left, top,   x0, x1, y0, y1, k, c, n, i, points, j, m) {
      x0 = left + 60; x1 = left + 540; y0 = top + 40; y1 = top + 260
      bottom = floor(low[panel]); top_ = floor(high[panel]) + 1
      printf "<text x=\"%d\" y=\"%d\" class=\"title\">%s</text>\n", x0, y0 - 12, title
      for (k = bottom; k <= top_; ++k) {
        y = y1 - (k - bottom) / (top_ - bottom) * (y1 - y0)
        printf "<path d=\"M%d %.1fh%d\" class=\"grid\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", \
          x0, y, x1 - x0, x0 - 8, y + 4, power(k)
      }
      for (k = 10; k <= 20; k += 2) {
        x = x0 + (k - 10) / 10 * (x1 - x0)
        printf "<path d=\"M%.1f %dv5\" class=\"axis\"/><text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", \
          x, y1, x, y1 + 19, k == 20 ? "1M" : 2 ^ (k - 10) "K"
      }
      printf "<path d=\"M%d %dV%dH%d\" class=\"axis\"/>\n", x0, y0, y1, x1
      n = split(curves[panel], c, " ")
      for (i = 1; i <= n; ++i) {
        m = index(c[i], models[1]) ? 1 : 2
        points = ""
        for (j = 1; j <= count[panel, c[i]]; ++j) {
          x = x0 + (X[panel, c[i], j] / log10(2) - 10) / 10 * (x1 - x0)
          y = y1 - (Y[panel, c[i], j] - bottom) / (top_ - bottom) * (y1 - y0)
          points = points sprintf("%.1f,%.1f ", x, y)
          printf "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.6\" fill=\"%s\"/>\n", x, y, colour[m]
        }
        printf "<polyline points=\"%s\" stroke=\"%s\"%s/>\n", points, colour[m], c[i] ~ /^train/ ? " stroke-dasharray=\"6 3\"" : ""
      }
    }
    BEGIN { colour[1] = "#0072b2"; colour[2] = "#d55e00" }
    {
      if (!($2 in seen)) { seen[$2] = 1; models[++known] = $2 }
      add($1, $1 "/" $2, $3, $1 == "decode" ? $6 : $4)
      if ($1 != "decode") add("memory", $1 "/" $2, $3, $5)
    }
    END {
      print "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1160\" height=\"660\" viewBox=\"0 0 1160 660\">"
      print "<style>text{font:12px system-ui,Helvetica,Arial,sans-serif;fill:#444}.title{font-size:14px;font-weight:600;fill:#222}" \
        "polyline{fill:none;stroke-width:1.8}.grid{stroke:#e8e8e8;fill:none}.axis{stroke:#888;fill:none}</style>"
      print "<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>"
      for (i = 1; i <= known; ++i)
        printf "<path d=\"M80 %dh28\" stroke=\"%s\" stroke-width=\"3\"/><text x=\"118\" y=\"%d\">%s</text>\n", \
          10 + 18 * i, colour[i], 14 + 18 * i, models[i]
      all = split("prefill train memory decode", panel)
      title["prefill"] = "forward, ms against L"
      title["train"] = "forward and backward, ms against L"
      title["memory"] = "memory, GB against L (dashed: with backward)"
      title["decode"] = "generation, tokens/s against the context"
      for (b = 1; b <= all; ++b) if (panel[b] in curves) {
        draw(panel[b], title[panel[b]], 20 + drawn % 2 * 560, 50 + int(drawn / 2) * 300)
        ++drawn
      }
      print "</svg>"
    }'
}

if [[ ${1:-} == --draw ]]; then
  out=${2:?OUT}
else
  out=${1:?OUT}
  measure "$out" "${2:-build-cuda/krait}"
fi
table "$out.jsonl" >"$out.md"
drawing "$out.jsonl" >"$out.svg"
