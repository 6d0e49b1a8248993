#!/usr/bin/env bash
# By accelerate's launcher:   launch/accelerate.sh [--dry-run] WAY CONFIG [key=value …]
#
# WAY is a file of configs/accelerate without its ending (ddp, fsdp2, zero1, zero2, zero3, zero3-offload, multi-node), or a file of your own.
# Several machines: run it on each, with NNODES, NODE_RANK and MASTER_ADDR as in launch/torchrun.sh; accelerate pins their number.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/env.sh"
begin "$@"
shift "$SKIP"
way=${1:?WAY is missing; see --help}
shift
[[ -f $way ]] || way=$here/../configs/accelerate/$way.yaml
[[ -f $way ]] || { echo "accelerate.sh: no file $way; see configs/accelerate" >&2; exit 2; }
fixed_machines accelerate
known_address
machines=()
if ((NNODES > 1)); then
  machines=(--num_machines "$NNODES" --machine_rank "$NODE_RANK" --main_process_ip "$MASTER_ADDR"
    --main_process_port "$MASTER_PORT" --rdzv_backend c10d --max_restarts "${MAX_RESTARTS:-3}"
    --rdzv_conf "is_host=$((NODE_RANK == 0))")
fi
start "$PYTHON" -m accelerate.commands.launch --config_file "$way" --num_processes $((NNODES * RANKS_PER_NODE)) \
  "${machines[@]}" -m mmscale train "$@" "${PREFLIGHT[@]}"
