#!/usr/bin/env bash
# Hand a run or a search to a Ray cluster:   launch/ray/submit.sh [--dry-run] train|tune CONFIG [key=value …]
#
#   RAY_API_SERVER_ADDRESS=http://head:8265 RANKS=16 launch/ray/submit.sh train my.yaml
#   RAY_API_SERVER_ADDRESS=http://head:8265 launch/ray/submit.sh tune configs/tune/digits.yaml
#
# RANKS=8:16 goes on with 8 to 16 processes as machines are lost and return. All machines must see this folder and run.dir
# under the same paths. MMSCALE_DIR (this folder): where the command runs. NO_WAIT=1 does not follow the log. PYTHON: the
# interpreter there. A search that was cut off goes on with --resume behind the config.
set -euo pipefail
here=$(CDPATH= cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../env.sh"
begin "$@"
shift "$SKIP"
verb=${1:-nothing}
shift || true
case $verb in
  train) set -- "$@" --ray "${RANKS:-$RANKS_PER_NODE}" "${PREFLIGHT[@]}" ;;
  tune) ;;
  *)
    echo "submit.sh: $verb: is neither train nor tune" >&2
    exit 2
    ;;
esac
: "${RAY_API_SERVER_ADDRESS:=http://127.0.0.1:8265}"
line=$(printf '%q ' "$PYTHON" -m mmscale "$verb" "$@")
start "$PYTHON" -m ray.scripts.scripts job submit --address "$RAY_API_SERVER_ADDRESS" ${NO_WAIT:+--no-wait} \
  -- bash -c "cd $(printf '%q' "${MMSCALE_DIR:-$PWD}") && exec $line"
