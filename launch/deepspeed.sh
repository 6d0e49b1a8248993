#!/usr/bin/env bash
# By DeepSpeed's launcher:   launch/deepspeed.sh [--dry-run] CONFIG [key=value …]
#
# HOSTFILE=hosts launch/deepspeed.sh my.yaml parallel.strategy=zero3      lines "name slots=8"; needs pdsh and ssh without passwords
# Without HOSTFILE: this machine. The strategy is the config's; zero2 if it says auto.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/env.sh"
begin "$@"
shift "$SKIP"
strategy=()
[[ " $* " == *" parallel.strategy="* ]] || strategy=(parallel.strategy=zero2)
where=(--num_gpus "$RANKS_PER_NODE")
if [[ -n ${HOSTFILE:-} ]]; then
  [[ -f $HOSTFILE ]] || { echo "deepspeed.sh: HOSTFILE=$HOSTFILE does not exist" >&2; exit 2; }
  where=(--hostfile "$HOSTFILE" --master_addr "$MASTER_ADDR")
fi
start "$PYTHON" -m deepspeed.launcher.runner "${where[@]}" --master_port "$MASTER_PORT" \
  --module mmscale train "$@" "${strategy[@]}"
