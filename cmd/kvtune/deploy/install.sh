# For scripts that install what tests need into a folder, DIR: sourced with "$installed", what it is in words, and the
# script's arguments. It gives dir, the folder; log, a file in it; fail and step.
# shellcheck shell=bash disable=SC2034,SC2154

fail() {
  echo "cannot install $installed: $*" >&2
  exit 1
}

[ $# -eq 1 ] || fail "usage: $0 DIR"
mkdir -p "$1" || fail "the folder $1 cannot be made"
dir=$(cd "$1" && pwd)
log=$dir/install.log

# Runs a step with its output in the log; shows the end of it when the step fails.
step() {
  local what=$1
  shift
  echo "== $what: $*" >>"$log"
  if ! "$@" >>"$log" 2>&1; then
    tail -n 15 "$log" >&2
    fail "$what failed (the lines above; all of it in $log)"
  fi
}
