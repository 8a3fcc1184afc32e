#!/usr/bin/env bash
# Build kvtune for linux amd64 and arm64, check each program, and write their checksums: `make dist`.
#
#   cmd/kvtune/deploy/dist.sh DIR
#
# gives DIR/kvtune-linux-{amd64,arm64} and DIR/SHA256SUMS. A program needs only glibc's own libraries; it has the GPU
# kernels in it, and finds NVML and CUDA's driver where it runs. Symbols of glibc newer than 2.35 are an error: that is
# what Ubuntu 22.04 has. The version is that of git, so that it is built in a clone (Go does not read a linked work
# tree).
set -euo pipefail

fail() {
  echo "make dist: $*" >&2
  exit 1
}

[ $# -eq 1 ] || fail "usage: $0 DIR"
newest=2.35
dir=$1
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
cd "$(dirname "$0")/../../.."
for need in aarch64-linux-gnu-gcc:gcc-aarch64-linux-gnu objdump:binutils qemu-aarch64-static:qemu-user-static; do
  command -v "${need%:*}" >/dev/null || fail "${need%:*} is missing: apt-get install ${need#*:} libc6-dev-arm64-cross"
done

for source in kernels/gpu/*.cu; do
  image=kernels/gpu/image/$(basename "$source" .cu).fatbin
  [ -s "$image" ] || fail "$image is missing: make images compiles it"
done

for arch in amd64 arm64; do
  case $arch in
    amd64) cc=x86_64-linux-gnu-gcc run=() ;;
    arm64) cc=aarch64-linux-gnu-gcc run=(qemu-aarch64-static -L /usr/aarch64-linux-gnu) ;;
  esac
  [ $arch != "$(${GO:-go} env GOHOSTARCH)" ] || run=()
  out=$dir/kvtune-linux-$arch
  CGO_ENABLED=1 GOOS=linux GOARCH=$arch CC=$cc \
    ${GO:-go} build -trimpath -tags cuda -ldflags='-s -w' -o "$out" ./cmd/kvtune
  symbols=$(objdump -T "$out" 2>/dev/null || "${cc%-gcc}-objdump" -T "$out")
  glibc=$(grep -o 'GLIBC_[0-9.]*' <<<"$symbols" | sort -uV | tail -n 1)
  glibc=${glibc#GLIBC_}
  [ -n "$glibc" ] || fail "$out names no version of glibc: expected one at most $newest"
  [ "$(printf '%s\n' "$glibc" $newest | sort -V | tail -n 1)" = $newest ] ||
    fail "$out needs glibc $glibc: expected at most $newest"
  libraries=$("${cc%-gcc}-objdump" -p "$out" | awk '$1 == "NEEDED" {print $2}' | paste -sd ' ')
  for library in $libraries; do
    case $library in
      libc.so.6 | libm.so.6 | libresolv.so.2 | libpthread.so.0 | libdl.so.2 | ld-linux*) ;;
      *) fail "$out needs $library: expected only the libraries of glibc" ;;
    esac
  done
  version=$("${run[@]}" "$out" --version)
  [[ $version != *"development build"* ]] || fail "$out does not know its version: build in a clone made by git"
  "${run[@]}" "$out" env >/dev/null || fail "$out env does not run"
  echo "$out: $version; glibc >= $glibc; $libraries"
done
(cd "$dir" && sha256sum kvtune-linux-amd64 kvtune-linux-arm64 >SHA256SUMS && sha256sum --quiet -c SHA256SUMS)
