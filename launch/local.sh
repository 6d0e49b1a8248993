#!/usr/bin/env bash
# All GPUs of this machine (or one process without any):   launch/local.sh [--dry-run] CONFIG [key=value …]
#
# RANKS_PER_NODE=4 launch/local.sh my.yaml    takes four processes.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NNODES=1 # whatever job it stands in
source "$here/env.sh"
begin "$@"
shift "$SKIP"
start "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$RANKS_PER_NODE" -m mmscale train "$@" "${PREFLIGHT[@]}"
