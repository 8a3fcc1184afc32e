#!/usr/bin/env bash
# Measure a GPU and write the record that bench/results/<gpu> keeps: `make bench-h200` on a machine with a Go toolchain
# and a CUDA compiler, or this script where only the programs are.
#
#   record.sh BIN OUT [CASES]
#
# BIN holds kvtune-cuda, and the test programs gpu.test (of kernels/gpu) and bench.test (of bench). With a Python that
# has vLLM (PYTHON, python3 by default) its kernels are timed too. CASES are gpu.cases if not given. OUT is replaced
# part by part:
#
#   tuning.json     which kernel was the fastest for every case, and what the others took
#   first, second   two whole runs of the cases, in processes of their own: archives. The first tunes the cases that
#                   tuning.json, if it is there, has not; the second takes the same kernels
#   peer            vLLM's kernels on the cases that they have: an archive
#   checked.txt     the full product of operations, layouts, block sizes and dtypes against the float64 reference
#   env.txt compare.txt targets.txt gpu.cases
#
# What it does not run, because it takes longer: planted.sh, and bench.test -test.run TestGPUCases under
# compute-sanitizer.
set -euo pipefail
[ $# -eq 2 ] || [ $# -eq 3 ] || { echo "usage: $0 BIN OUT [CASES]" >&2; exit 2; }
cases=$(realpath "${3:-$(dirname "$0")/gpu.cases}")
here=$(cd "$(dirname "$0")" && pwd) bin=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
step() { echo "== $SECONDS s: $*" >&2; }

step environment
"$bin/kvtune-cuda" env >"$out/env.txt"
step the full product against the reference
(cd "$here" && "$bin/gpu.test" -test.v -test.run 'TestAgainstReference|TestLongCases|TestPeaks') |
  grep -v '^ *\(=== \|--- PASS: Test[A-Za-z]*/\)' >"$out/checked.txt" || { cat "$out/checked.txt"; exit 1; }
cp "$cases" "$out/gpu.cases"
tune=(--tuning tuning.json --tune 150ms)
for run in first second; do
  step "$run run"
  rm -rf "${out:?}/$run"
  # The command stands in the record: no path of this machine.
  (cd "$out" && PATH=$bin:$PATH && kvtune-cuda bench --backend cuda --cases gpu.cases "${tune[@]}" --rounds 1 \
    --time 800ms --output-dir "$run" 2>"$run.log" >"$run.txt") || { tail -3 "$out/$run.log" >&2; exit 1; }
  mv "$out/$run.txt" "$out/$run/kernels.txt"
  rm "$out/$run.log"
  tune=(--tuning tuning.json)
done
if ${PYTHON:-python3} -c 'import vllm' 2>/dev/null; then
  step peers
  rm -rf "${out:?}/peer"
  (cd "$out" && PATH=$bin:$PATH && kvtune-cuda bench --backend vllm --python "${PYTHON:-python3}" --cases gpu.cases \
    --no-ceilings --rounds 1 --time 800ms --output-dir peer 2>peer.log >peer.txt) ||
    { tail -3 "$out/peer.log" >&2; exit 1; }
  mv "$out/peer.txt" "$out/peer/kernels.txt"
  rm "$out/peer.log"
fi
step compare
(cd "$out" && "$bin/kvtune-cuda" compare --threshold 0.02 first second >compare.txt) || [ $? -eq 3 ]
(cd "$here" && "$bin/bench.test" -test.run 'TestRecord$' -test.v -record "$out") |
  grep -v '^=== ' >"$out/targets.txt" || { cat "$out/targets.txt"; exit 1; }
step done
cat "$out/targets.txt"
