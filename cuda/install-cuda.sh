#!/usr/bin/env bash
# Install a CUDA compiler, and the driver API's headers of CUDA 11.8, 12 and 13, for `make test-cuda`: no GPU, no
# driver.
#
#   install-cuda.sh DIR
#
# gives   DIR/bin/nvcc                of CUDA 13
#         DIR/include/{11,12,13}      cuda.h and what it needs
#
# It installs again when this script changes or when an earlier run was cut short; otherwise it only checks. It needs
# Python 3.10 or newer, a C++ compiler and 1 GB of disk, and takes seconds.
set -euo pipefail

installed="the CUDA compiler"
. "$(dirname "$0")/../cmd/kvtune/deploy/install.sh"
stamp=$(cksum <"$0")

if [ "$(cat "$dir/installed" 2>/dev/null)" = "$stamp" ] && "$dir/bin/nvcc" --version >/dev/null 2>&1; then
  echo "the CUDA compiler is in $dir"
  exit 0
fi
[ "$(uname -s)" = Linux ] || fail "it is for Linux only, this is $(uname -s)"
command -v python3 >/dev/null || fail "no Python found: apt-get install python3 python3-venv"

rm -rf "$dir/venv" "$dir/bin" "$dir/include" "$dir/headers" "$dir/installed" "$log"
step "making a virtual environment (Debian: apt-get install python3-venv)" python3 -m venv "$dir/venv"
pip=("$dir/venv/bin/python" -m pip install --quiet)
step "fetching the compiler" "${pip[@]}" 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-runtime==13.0.*' \
  'nvidia-cuda-cccl==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*'
for cuda in 11:11.8 12:12.9; do
  step "fetching headers" "${pip[@]}" --no-deps --target "$dir/headers/${cuda%:*}" \
    "nvidia-cuda-runtime-cu${cuda%:*}==${cuda#*:}.*"
done
mkdir -p "$dir/bin" "$dir/include"
site=$("$dir/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# A link would not do: nvcc looks for its headers beside the path that it was called by.
printf '#!/bin/sh\nexec "%s" "$@"\n' "$site/nvidia/cu13/bin/nvcc" >"$dir/bin/nvcc"
chmod +x "$dir/bin/nvcc"
ln -s "$site/nvidia/cu13/include" "$dir/include/13"
for cuda in 11 12; do ln -s "$dir/headers/$cuda/nvidia/cuda_runtime/include" "$dir/include/$cuda"; done
for cuda in 11 12 13; do
  [ -f "$dir/include/$cuda/cuda.h" ] || fail "cuda.h of CUDA $cuda is missing: see $log"
done
"$dir/bin/nvcc" --version >>"$log" || fail "nvcc does not run: see $log"
echo "$stamp" >"$dir/installed"
echo "the CUDA compiler is in $dir"
