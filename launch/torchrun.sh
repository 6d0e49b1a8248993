#!/usr/bin/env bash
# One of several machines; run it on each:   launch/torchrun.sh [--dry-run] CONFIG [key=value …]
#
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 launch/torchrun.sh my.yaml      on 10.0.0.1
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=10.0.0.1 launch/torchrun.sh my.yaml      on the other
#
# NNODES=1:2 is elastic: a machine that is lost leaves the others to go on, one that returns joins again; the curve is the same,
# because a batch does not depend on who reads it. The first machine keeps the rendezvous; if it is lost the job ends, and the
# next start goes on from the last checkpoint. MAX_RESTARTS (3), RANKS_PER_NODE (the GPUs), NETWORK_INTERFACE (such as eth0).
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/env.sh"
begin "$@"
shift "$SKIP"
known_address
# Without is_host neither side hosts the store where host names do not tell who the first is. The short time-outs find a
# machine that is gone in seconds rather than in most of a minute.
is_host=$((NODE_RANK == 0))
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else a machine cannot join again
start "$PYTHON" -m torch.distributed.run \
  --nnodes "$NNODES" --nproc-per-node "$RANKS_PER_NODE" --max-restarts "${MAX_RESTARTS:-3}" \
  --rdzv-backend c10d --rdzv-id "$JOB_ID" --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" \
  --rdzv-conf "is_host=$is_host,last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3" \
  --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
  -m mmscale train "$@" "${PREFLIGHT[@]}"
