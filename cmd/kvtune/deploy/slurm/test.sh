#!/usr/bin/env bash
# Run the sbatch examples beside this script on a real Slurm of this machine: `make test-slurm`.
#
#   cmd/kvtune/deploy/slurm/test.sh KVTUNE
#
# starts munged, slurmctld and slurmd with a configuration of its own in a temporary folder, sends array jobs that use
# the program KVTUNE, compares what `kvtune merge` makes of them with what one process writes, and stops everything. It
# needs no root, no accounting and no cgroups, and leaves a Slurm that is there already alone.
set -euo pipefail

fail() {
  echo "make test-slurm: $*" >&2
  for log in "${tmp:-/nowhere}"/*.log "${tmp:-/nowhere}"/*/*.log; do
    [ ! -s "$log" ] || { echo "== $log" && tail -n 15 "$log"; } >&2
  done
  exit 1
}

[ $# -eq 1 ] || fail "usage: $0 KVTUNE"
kvtune=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
for need in munged slurmctld slurmd sbatch srun scancel scontrol; do
  command -v "$need" >/dev/null ||
    fail "$need is missing: on Debian, apt-get install slurmctld slurmd slurm-client munge"
done

tmp=$(mktemp -d)
chmod 755 "$tmp"
daemons=()
stop() {
  status=$?
  trap - EXIT
  scancel --quiet --user "$(id -un)" 2>/dev/null || true
  for _ in $(seq 100); do
    [ -n "$(squeue --noheader 2>/dev/null)" ] || break
    sleep 0.2
  done
  for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do # what was started last ends first
    kill "${daemons[i]}" 2>/dev/null || true
    wait "${daemons[i]}" || true
  done
  rm -rf "$tmp"
  exit $status
}
trap stop EXIT

# A Slurm of one node. Its processors are more than the machine's, so that three tasks run at a time anywhere.
host=$(hostname -s)
free_port() {
  local port
  while port=$((20000 + RANDOM % 12000)) && (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}
mkdir "$tmp"/{bin,munge,state,spool}
chmod 711 "$tmp/munge"
ln -s "$kvtune" "$tmp/bin/kvtune"
export PATH=$tmp/bin:$PATH SLURM_CONF=$tmp/slurm.conf
cat >"$SLURM_CONF" <<CONF
ClusterName=kvtune
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmctldPidFile=$tmp/slurmctld.pid
SlurmdPidFile=$tmp/slurmd.pid
SlurmctldLogFile=$tmp/slurmctld.log
SlurmdLogFile=$tmp/slurmd.log
StateSaveLocation=$tmp/state
SlurmdSpoolDir=$tmp/spool
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$tmp/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
KillWait=5
ReturnToService=2
NodeName=node NodeHostname=$host NodeAddr=127.0.0.1 CPUs=8 RealMemory=16000
PartitionName=all Nodes=node Default=YES MaxTime=INFINITE State=UP
CONF
head -c 128 /dev/urandom >"$tmp/munge/key"
chmod 600 "$tmp/munge/key"
munged --foreground --force --key-file="$tmp/munge/key" --socket="$tmp/munge/socket" --pid-file="$tmp/munge/pid" \
  --seed-file="$tmp/munge/seed" 2>"$tmp/munged.log" &
daemons+=($!)
slurmctld -D -f "$SLURM_CONF" 2>"$tmp/slurmctld.err.log" &
daemons+=($!)
slurmd -D -N node -f "$SLURM_CONF" 2>"$tmp/slurmd.err.log" &
daemons+=($!)
for _ in $(seq 100); do
  [ "$(sinfo --noheader --format=%t 2>/dev/null)" != idle ] || break
  sleep 0.3
done
[ "$(sinfo --noheader --format=%t)" = idle ] || fail "Slurm does not start: $(sinfo 2>&1)"

# ended waits until no task of a job is left, and fails after two minutes. state is that of a task, e.g. COMPLETED.
ended() {
  [ -n "$1" ] || return 0
  for _ in $(seq 240); do
    [ -n "$(squeue --noheader --jobs="$1" 2>/dev/null)" ] || return 0
    sleep 0.5
  done
  fail "job $1 does not end: $(squeue)"
}
state() { scontrol show job "$1" | sed -n 's/.*JobState=\([A-Z]*\).*/\1/p'; }
pids() {
  local id
  id=$(scontrol show job "$1" | sed -n 's/^JobId=\([0-9]*\).*/\1/p')
  scontrol listpids "$id" | awk '$2 == '"$id"' && $1 > 0 {print $1}'
}
completed() {
  for task in "$@"; do
    [ "$(state "$task")" = COMPLETED ] || fail "task $task: $(scontrol show job "$task")"
  done
}
said() { grep -q -- "$2" "$1" || fail "$1 does not say: $2"; }

# A sweep by an array that begins at 5. One task dies by SIGKILL on its way and is queued again, one is cancelled and
# runs again as a job of its own: neither does anew what it had done, the third is left alone.
cells=(--quick-test --model=gpt2 --gpu=L4 --C=64 --M=0 --B=4 --output-len=32 --num-measurements=8
  --C-range=64,128,256 --M-range=0,2 --B-range=4:32:x2 --block-size-range=16,32)
mkdir "$tmp"/{whole,sweep,load,bench}
cd "$tmp/whole"
kvtune plan --generate-parameter-sweep --target-optimization=throughput "${cells[@]}" >printed 2>whole.log
cd "$tmp/sweep"
job=$(sbatch --parsable --array=5-7 "$here/sweep.sbatch" "${cells[@]}")
for i in 1 2; do
  for _ in $(seq 300); do
    [ "$(stat -c %s "shard-$i-of-3/sweep_rows.jsonl.zst" 2>/dev/null || echo 0)" -lt 2000 ] || break
    sleep 0.05
  done
  case $i in
    1) kill -9 $(pids "${job}_6") ;;
    2) scancel "${job}_7" ;;
  esac
done
ended "$job"
completed "${job}_5"
[ "$(state "${job}_6")" = FAILED ] || fail "the task that was killed is $(state "${job}_6")"
[ "$(state "${job}_7")" = CANCELLED ] || fail "the task that was cancelled is $(state "${job}_7")"
status=0
kvtune merge . >merge.log 2>&1 || status=$?
[ $status -eq 2 ] || fail "kvtune merge of shards that died: exit status $status, expected 2"
said merge.log 'run it again (--shard 1/3 --resume)'
first=$(stat -c '%n %y' shard-0-of-3/*)
scontrol requeue "${job}_6"
scontrol update JobId="${job}_6" StartTime=now # not after the two minutes that Slurm waits
again=$(sbatch --parsable --array=7 "$here/sweep.sbatch" "${cells[@]}" --shard=2/3)
ended "$job,$again"
completed "${job}_6" "${again}_7"
said "kvtune-$job-6.log" 'shard 1/3 of a sweep: 16 of 48 cells ([0-9]* taken over from the interrupted run)'
said "kvtune-$again-7.log" 'shard 2/3 of a sweep: 16 of 48 cells ([0-9]* taken over from the interrupted run)'
[ "$first" = "$(stat -c '%n %y' shard-0-of-3/*)" ] || fail "the shard that did not die was written again"
kvtune merge . >printed
for file in printed parameter_sweep.csv parameter_sweep_heatmap.png custom_schedule_plans.json; do
  cmp "$file" "../whole/$file" || fail "$file is not what one process writes"
done
taken=$(sed -n 's/^shard.*(\([0-9]*\) taken over.*/\1/p' kvtune-*.log | paste -sd ' ')
echo "sweep: two tasks that died took over $taken of 16 cells each; merged, it is what one process writes"

# A benchmark of the host's processor: every case is there once, whichever task timed it.
cd "$tmp/bench"
job=$(sbatch --parsable --array=0-2 --output='bench-%a.log' --wrap 'exec kvtune bench --backend host \
  --axis block_size=8,16,32 --axis layout=NHD,HND --axis batch=1 --axis context=64 --rounds 1 --time 5ms --no-ceilings')
ended "$job"
completed "$job"_{0,1,2}
kvtune merge results >merge.log
cases=$(sed -n 's/^ *"case": "\(.*\)",$/\1/p' results/kernels_bench.json)
[ "$(sort -u <<<"$cases" | wc -l)" = 6 ] && [ "$(wc -l <<<"$cases")" = 6 ] || fail "expected 6 cases, once each: $cases"
for block_size in 8 16 32; do said merge.log "^ *$block_size  *NHD" && said merge.log "^ *$block_size  *HND"; done
echo "bench: 6 cases of 3 tasks, once each"

# A load by three clients on one server, from a common start on: the server got what the merged file holds, no more.
cd "$tmp/load"
port=$(free_port)
kvtune serve --model gpt2 --gpu L4 --listen "127.0.0.1:$port" >serve.log 2>&1 &
daemons+=($!)
job=$(sbatch --parsable --array=3-5 "$here/load.sbatch" "http://127.0.0.1:$port" "$(date -Iseconds -d '+6 sec')" \
  --C=32 --M=0 --output-len=4 --rate=50 --duration=6s --num-warmup=0)
ended "$job"
completed "$job"_{3,4,5}
kvtune merge results >merge.log
each=$(sed -n 's/^profiling: \([0-9]*\) of \1 requests.*/\1/p' kvtune-*.log)
all=$(($(paste -sd + <<<"$each")))
[ "$(wc -l <<<"$each")" = 3 ] && [ "$all" -gt 200 ] || fail "the clients sent $each"
said merge.log "^profiling: $all of $all requests"
! grep -e 'shards began' -e contaminated merge.log || fail "the clients did not begin together"
exec 3<>"/dev/tcp/127.0.0.1/$port"
printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
served=$(awk '/^vllm:request_success_total/ {n += $NF} END {print n}' <&3)
exec 3>&-
[ "$served" = "$all" ] || fail "the server served $served requests, the merged file holds $all"
echo "load: $all requests of 3 tasks, all that the server served"

# A server that kvtune launches by way of srun: it ends with the run.
cd "$tmp"
kvtune profile --launch --launch-arg srun --launch-arg --ntasks=1 --launch-arg sh --launch-arg -c \
  --launch-arg 'exec kvtune serve --model gpt2 --gpu L4 --listen 127.0.0.1:{port}' --model gpt2 --gpu L4 \
  --C 32 --M 0 --B 2 --output-len 4 --num-measurements 1 --output-dir srun >srun.log 2>&1 ||
  fail "a server through srun"
said srun.log '^profiling: 2 of 2 requests'
ended "$(squeue --noheader --format=%i | paste -sd ,)"
echo "srun: a launched server served and ended"
