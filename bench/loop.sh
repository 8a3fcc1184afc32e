#!/usr/bin/env bash
# The loop on a real server: profile once, plan for three workloads, verify, predicted beside measured. `make loop-h200`
# on a machine with a Go toolchain, or this script where only the program is. Python must have vLLM (PYTHON, python3).
#
#   loop.sh KVTUNE OUT [PART...]
#
# Every part is left out where OUT has its result already, so that a loop that was cut short goes on; remove a part's
# folder to run it again. Parts, in this order; without PART the first five:
#
#   profile       the probes and a small mixed workload on a server with vLLM's defaults; `kvtune fit`
#   plan          three workloads x five strategies, on paper
#   conversation  verify: throughput under objectives, lengths of the Azure conversation trace
#   code          verify: p99 TTFT, the Azure code trace as it came (its bursts are what it is for)
#   prefix        verify: prefix-cache hits, conversations of many turns under one system prompt
#   interference  the same load with and without `kvtune bench` (built with the tag cuda) beside it on the GPU
#
# A verified workload measures three settings on the same requests with the same arrivals: BAD_<workload>, settings that
# the planner calls bad; vLLM's defaults; the plan. ROUNDS=1 runs them once each in that order (ABC), 2 back and forth
# (ABCCBA). OUT/minutes.txt has what each part took.
#
# Other servers: EXTRA='--kv-cache-dtype fp8' is passed on to every start, MODEL is a folder with a config.json (without
# it the shape of Llama-3.1-8B, made here), LAUNCH replaces the command before the model; LAUNCH=none is the embedded
# engine.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 KVTUNE OUT [PART...]" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
# Commands that are recorded name no folder of this machine: the program by its name, files from OUT on.
PATH=$(dirname "$(realpath "$1")"):$PATH kvtune=$(basename "$1")
DATA=$(realpath "${KVTUNE_DATA:-$here/../../shared/data}/traces")
mkdir -p "$2"
cd "$2"
ln -sfn "$DATA" traces
trap 'rm -f traces' EXIT
shift 2
parts=("$@")
[ $# -gt 0 ] || parts=(profile plan conversation code prefix)

GPU=${GPU:-H200} ROUNDS=${ROUNDS:-2} EXTRA=${EXTRA:-}
LAUNCH=${LAUNCH:-${PYTHON:-python3} -m vllm.entrypoints.cli.main serve}
# What a GPU's size decides: requests/s and users that load it, and do not overload it.
case $GPU in
H100) CONVERSATION_RATE=${CONVERSATION_RATE:-20} USERS=${USERS:-110} ;;
*) CONVERSATION_RATE=${CONVERSATION_RATE:-18} USERS=${USERS:-230} ;;
esac
CODE_RATE=${CODE_RATE:-6} REQUESTS=${REQUESTS:-1000} AZURE=AzureLLMInferenceTrace
BAD_conversation=${BAD_conversation:---max-num-seqs 48}
BAD_code=${BAD_code:---max-num-batched-tokens 512}
BAD_prefix=${BAD_prefix:---gpu-memory-utilization 0.7}

MODEL=${MODEL:-model}
[ -e "$MODEL/config.json" ] || { mkdir -p "$MODEL" && cat >"$MODEL/config.json" <<'END'; }
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
 "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
 "max_position_embeddings": 131072, "rope_theta": 500000.0, "hidden_act": "silu", "rms_norm_eps": 1e-05,
 "tie_word_embeddings": false, "torch_dtype": "bfloat16", "bos_token_id": 128000, "eos_token_id": 128001}
END
server=(--gpu "$GPU")
tail=()
if [ "$LAUNCH" != none ]; then
  server+=(--launch)
  for word in $LAUNCH; do server+=(--launch-arg "$word"); done
  # shellcheck disable=SC2086 # EXTRA is words
  tail=(-- --load-format dummy --skip-tokenizer-init --disable-uvicorn-access-log $EXTRA)
fi
shape=(--model "./$MODEL" --max-model-len 16384)

workload() { # NAME: its flags
  case $1 in
  conversation) echo "--trace traces/${AZURE}_conv.csv --rate $CONVERSATION_RATE --num-requests $REQUESTS" ;;
  code) echo "--trace traces/${AZURE}_code.csv --rate $CODE_RATE --num-requests $REQUESTS" ;;
  prefix) echo "--users $USERS --turns 8 --think-time 5s --C 600 --M 128 --prefix shared --output-len 150:350
    --num-requests $((USERS * 7))" ;;
  esac
}
objective() { # NAME: strategy and objectives
  case $1 in
  conversation) echo "throughput;--slo;p99 ITL <= 80ms;--slo;p99 TTFT <= 2s" ;;
  code) echo "latency;--slo;p99 TTFT <= 15s" ;;
  prefix) echo "cache;--slo;p99 TTFT <= 20s" ;;
  esac
}

step() { echo "== $SECONDS s: $*" >&2; }
took() { # PART BEGIN
  awk -v part="$1" -v s=$((SECONDS - $2)) 'BEGIN { printf "%-13s %6.1f min\n", part, s / 60 }' >>minutes.txt
}
run() { # TEXT COMMAND...: what it prints goes to TEXT; a negative verdict (3) is a result
  local text=$1
  shift
  echo "\$ kvtune ${*@Q}" >"$text"
  "$kvtune" "$@" >>"$text" 2>"$text.err" || [ $? -eq 3 ] || { tail -5 "$text.err" >&2; return 1; }
}

profile() {
  [ ! -e cost.json ] || return 0
  run profile.txt profile "${server[@]}" "${shape[@]}" --probes -C 512 -B 16 --output-dir profile "${tail[@]}"
  run fit.txt fit --profiling-results profile --model "./$MODEL" --gpu "$GPU" --output-file cost.json
}

plan() {
  for w in conversation code prefix; do
    [ ! -e "plans_$w.json" ] || continue
    IFS=';' read -ra slos <<<"$(objective $w)"
    # shellcheck disable=SC2046 # the workload is words
    run "plans_$w.txt" plan --profiling-results profile --cost cost.json --gpu "$GPU" "${shape[@]}" $(workload $w) \
      "${slos[@]:1}" --output-file "plans_$w.json"
  done
}

verify() { # WORKLOAD
  local w=$1 bad=BAD_$1
  [ ! -e "$w/custom_schedule_plans.json" ] || return 0
  IFS=';' read -ra slos <<<"$(objective "$w")"
  # shellcheck disable=SC2046
  run "$w.plan.txt" plan --profiling-results profile --cost cost.json --gpu "$GPU" "${shape[@]}" $(workload "$w") \
    --target-optimization "${slos[0]}" "${slos[@]:1}" --current "vllm serve ./$MODEL --max-model-len 16384 ${!bad}" \
    --output-file "$w.plan.json"
  run "$w.txt" verify --plan "$w.plan.json" --rounds "$ROUNDS" "${server[@]}" --model "./$MODEL" --budget 2h \
    --output-dir "$w.part" "${tail[@]}"
  mv "$w.part" "$w"
}

# A server of its own, four short loads on it, the second and third with the GPU's memory busy beside them.
interference() {
  [ ! -e interference.txt ] || return 0
  local port=8123 pid i alone=() beside=()
  # shellcheck disable=SC2086
  setsid $LAUNCH "./$MODEL" --max-model-len 16384 --port $port --host 127.0.0.1 "${tail[@]:1}" >interference.log 2>&1 &
  pid=$!
  # shellcheck disable=SC2064 # the pid of now
  trap "kill -TERM -- -$pid 2>/dev/null; rm -f traces" EXIT
  for i in $(seq 300); do curl -sf "http://127.0.0.1:$port/health" >/dev/null && break || sleep 1; done
  for i in 1 2 3 4; do
    local bench=
    if [ "$i" = 2 ] || [ "$i" = 3 ]; then
      "$kvtune" bench --backend cuda --op decode --axis block_size=16 --axis batch=16 --axis context=4096 --rounds 3 \
        --time 10s --output-dir "interference_bench_$i" >"interference_bench_$i.txt" 2>&1 &
      bench=$!
    fi
    # shellcheck disable=SC2046
    run "interference_$i.txt" profile --endpoint "http://127.0.0.1:$port" "${shape[@]}" $(workload conversation) \
      --num-requests 200 --seed "$i" --output-dir "interference_$i"
    [ -z "$bench" ] || { kill -INT $bench 2>/dev/null || true; wait $bench || true; }
  done
  kill -TERM -- -$pid
  wait $pid || true
  trap 'rm -f traces' EXIT
  for i in "1 2" "4 3"; do
    # shellcheck disable=SC2086
    set -- $i
    "$kvtune" compare "interference_$1" "interference_$2" || [ $? -eq 3 ]
  done >interference.txt
}

for part in "${parts[@]}"; do
  begin=$SECONDS
  step "$part"
  case $part in
  conversation | code | prefix) verify "$part" ;;
  profile | plan | interference) "$part" ;;
  *) echo "$0: no part $part" >&2; exit 2 ;;
  esac
  took "$part" "$begin"
done
step done
