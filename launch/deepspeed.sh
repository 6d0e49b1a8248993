#!/usr/bin/env bash
# By DeepSpeed's launcher:   launch/deepspeed.sh [--dry-run] CONFIG [key=value …]
#
# HOSTFILE=hosts launch/deepspeed.sh my.yaml parallel.strategy=zero3      lines "name slots=8"; needs pdsh and ssh without passwords
# Without HOSTFILE: this machine; or, without ssh, one of NNODES, as in launch/torchrun.sh. The strategy is the config's; zero2
# if it says auto.
set -euo pipefail
given=${MASTER_ADDR:-} # without one, DeepSpeed asks the first host of HOSTFILE for its address
here=$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/env.sh"
begin "$@"
shift "$SKIP"
fixed_machines "DeepSpeed's launcher"
if [[ -n ${HOSTFILE:-} ]]; then
  [[ -f $HOSTFILE ]] || { echo "deepspeed.sh: HOSTFILE=$HOSTFILE does not exist" >&2; exit 2; }
  where=(runner --hostfile "$HOSTFILE")
  if [[ $given ]]; then where+=(--master_addr "$given"); fi
else
  known_address
  # What the runner starts on each machine, by ssh; its own start on a single one does not pass on a signal. The names of the
  # machines say nothing but how many there are; the launcher makes CUDA_VISIBLE_DEVICES of the GPUs.
  gpus=$(seq -s , 0 $((RANKS_PER_NODE - 1)))
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]] && (($(_cards) >= RANKS_PER_NODE)); then
    gpus=$(cut -d , -f "1-$RANKS_PER_NODE" <<<"$CUDA_VISIBLE_DEVICES" | sed 's/[^,]*/"&"/g')
  fi
  machines=$(for ((node = 0; node < NNODES; node++)); do echo "\"$node\": [$gpus]"; done)
  world=$(base64 -w 0 <<<"{${machines//$'\n'/, }}" | tr '+/' '-_')
  where=(launch "--world_info=$world" "--node_rank=$NODE_RANK" "--master_addr=$MASTER_ADDR")
fi
start "$PYTHON" -m "deepspeed.launcher.${where[0]}" "${where[@]:1}" --master_port "$MASTER_PORT" \
  --module mmscale train "$@" "${PREFLIGHT[@]}"
