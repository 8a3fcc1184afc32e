#!/usr/bin/env bash
# Does `kvtune compare --run` find a slowdown of 1 %, and does it leave equal programs alone? On a GPU:
#
#   planted.sh KVTUNE-CUDA REPEATS
#
# The slow program decodes 1 % more tokens under the same name. It must be found at a threshold of 0.5 %; afterwards the
# program is compared with itself REPEATS times, and no difference may be shown.
set -euo pipefail
[ $# -eq 2 ] || { echo "usage: $0 KVTUNE-CUDA REPEATS" >&2; exit 2; }
kvtune=$(realpath "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
program() { # FILE TOKENS
  cat >"$1" <<END
#!/bin/sh
"$kvtune" bench --backend cuda --op decode --axis block_size=16 --axis batch=16 --axis context=$2 --rounds 1 \
  --time 200ms --no-ceilings --format bench --output-dir "$work/out" 2>/dev/null | sed s/context=$2/context=4096/
END
  chmod +x "$1"
}
program "$work/even" 4096
program "$work/same" 4096
program "$work/slow" 4137
compare() {
  "$kvtune" compare --threshold 0.005 --rounds 3 --run "$work/even" "$work/$1" 2>/dev/null | sed "s:$work/::"
}

status=0
text=$(compare slow) || [ $? -eq 3 ]
echo "planted, 1 % more tokens: $text"
grep -q '^REGRESSION' <<<"$text" || { echo "NOT FOUND"; status=1; }
flagged=0
for i in $(seq "$2"); do
  text=$(compare same) || [ $? -eq 3 ]
  echo "equal programs, $i: $(head -1 <<<"$text"); $(grep -o 'ns/op.*' <<<"$text" | head -1 | tr -s ' ')"
  if grep -q '^REGRESSION\|^better' <<<"$text"; then flagged=$((flagged + 1)); fi
done
echo "equal programs were flagged $flagged times of $2"
[ "$flagged" -eq 0 ] || status=1
exit $status
