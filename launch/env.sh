# Where this node stands in a job, worked out from the environment: sourced by the other scripts, prints nothing.
#
# Sets  NNODES  NODE_RANK  RANKS_PER_NODE  MASTER_ADDR  MASTER_PORT  JOB_ID   and sensible NCCL and Gloo settings.
# What is already set stays. Knows Slurm (inside srun), Kubernetes' JobSet and Kubeflow's PyTorchJob, and a single machine.

# First host of a Slurm node list, as an address its nodes reach.
_slurm_first() {
  local first
  command -v scontrol >/dev/null || { echo "${0##*/}: no scontrol here (in a container?); set MASTER_ADDR to the first node's address" >&2; exit 2; }
  first=$(scontrol show hostnames "$1" | head -n 1)
  scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p'
}

# GPUs that a process sees. CUDA takes CUDA_VISIBLE_DEVICES up to the first entry that is none (-1), and one slice (MIG) at most.
_cards() {
  local one count=0
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    for one in ${CUDA_VISIBLE_DEVICES//,/ }; do
      [[ $one =~ ^([0-9]|GPU-|MIG-) ]] || break
      count=$((count + 1))
      if [[ $one == MIG-* ]]; then count=1 && break; fi
    done
    echo "$count"
  elif command -v nvidia-smi >/dev/null 2>&1; then
    nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true
  else
    echo 0
  fi
}

if [[ -n ${SLURM_JOB_ID:-} ]]; then
  # A step may take fewer nodes than its job has, and numbers them itself.
  : "${NNODES:=${SLURM_STEP_NUM_NODES:-${SLURM_JOB_NUM_NODES:-1}}}"
  : "${NODE_RANK:=${SLURM_NODEID:-0}}"
  if [[ -z ${MASTER_ADDR:-} && $NNODES != 1 ]]; then
    MASTER_ADDR=$(_slurm_first "${SLURM_STEP_NODELIST:-$SLURM_JOB_NODELIST}") || exit
  fi
  # A requeued job must not meet what is left of itself; two jobs of one host must not share a port,
  # nor take one from 32768 on, which Linux gives to anybody.
  : "${JOB_ID:=slurm-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}}"
  : "${MASTER_PORT:=$((20000 + SLURM_JOB_ID % 10000))}"
  : "${RANKS_PER_NODE:=${SLURM_GPUS_ON_NODE:-}}"
elif [[ -n ${JOB_COMPLETION_INDEX:-} && -n ${JOBSET_NAME:-} ]]; then
  : "${NODE_RANK:=$JOB_COMPLETION_INDEX}"
  : "${MASTER_ADDR:=$JOBSET_NAME-${REPLICATED_JOB_NAME:-workers}-0-0.$JOBSET_NAME}"
  : "${JOB_ID:=$JOBSET_NAME-${JOBSET_RESTART_ATTEMPT:-0}}"
elif [[ -n ${PET_NNODES:-} || -n ${PET_NODE_RANK:-} ]]; then # Kubeflow
  : "${NNODES:=${PET_NNODES:-1}}"
  if [[ -n ${PET_RDZV_ENDPOINT:-} ]]; then # elastic: no rank is told, but pods are called JOB-worker-0, -1, …; the first is the endpoint
    : "${PET_MASTER_ADDR:=${PET_RDZV_ENDPOINT%:*}}" "${PET_MASTER_PORT:=${PET_RDZV_ENDPOINT##*:}}"
    _pod=${POD_NAME:-$HOSTNAME}
    if [[ -z ${NODE_RANK:-}${PET_NODE_RANK:-} ]]; then
      [[ ${_pod%-*} == "${PET_MASTER_ADDR%-0}" ]] || { echo "${0##*/}: which of the pods is $_pod? PET_RDZV_ENDPOINT is $PET_RDZV_ENDPOINT; set POD_NAME to its metadata.name" >&2; exit 2; }
      NODE_RANK=${_pod##*-}
    fi
  fi
  : "${NODE_RANK:=${PET_NODE_RANK:-0}}"
  : "${MASTER_ADDR:=${PET_MASTER_ADDR:-}}"
  : "${MASTER_PORT:=${PET_MASTER_PORT:-29500}}"
  : "${JOB_ID:=${PET_RDZV_ID:-mmscale}}"
  : "${RANKS_PER_NODE:=${PET_NPROC_PER_NODE:-}}"
  : "${MAX_RESTARTS:=${PET_MAX_RESTARTS:-3}}"
fi

: "${NNODES:=1}" "${NODE_RANK:=0}" "${MASTER_ADDR:=}" "${MASTER_PORT:=29500}" "${JOB_ID:=mmscale}"
if [[ $NNODES == 1 ]]; then : "${MASTER_ADDR:=127.0.0.1}"; fi
case ${RANKS_PER_NODE:-} in # the words are torchrun's
  "" | auto | gpu) RANKS_PER_NODE=$(_cards) ;;
  cpu) RANKS_PER_NODE=$(nproc) ;;
esac
[[ $RANKS_PER_NODE =~ ^[0-9]+$ ]] || { echo "${0##*/}: RANKS_PER_NODE=$RANKS_PER_NODE: is no number; leave it out for one process a GPU" >&2; exit 2; }
if ((RANKS_PER_NODE < 1)); then RANKS_PER_NODE=1; fi

# A collective that fails ends its process, so that the launcher can start the job again.
: "${TORCH_NCCL_ASYNC_ERROR_HANDLING:=3}"
# Gathered weights are large and few: blocks of memory that grow lose less than blocks of fixed sizes.
: "${PYTORCH_CUDA_ALLOC_CONF:=expandable_segments:True}"
: "${OMP_NUM_THREADS:=1}"
# How long torchrun waits after it passed on a stop signal before it kills: longer than train.grace_s, less than what Slurm
# and Kubernetes give. Its own default is 30 s; PyTorch 2.11 knows no other.
: "${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:=170}"
if [[ -n ${NETWORK_INTERFACE:-} ]]; then
  : "${NCCL_SOCKET_IFNAME:=$NETWORK_INTERFACE}" "${GLOO_SOCKET_IFNAME:=$NETWORK_INTERFACE}"
  export NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME
fi
: "${PYTHON:=python}"
export NNODES NODE_RANK RANKS_PER_NODE MASTER_ADDR MASTER_PORT JOB_ID PYTHON
export TORCH_NCCL_ASYNC_ERROR_HANDLING PYTORCH_CUDA_ALLOC_CONF OMP_NUM_THREADS TORCH_ELASTIC_SHUTDOWN_TIMEOUT

# begin "$@": print the script's opening comment and leave if asked for help or for nothing; else set DRY_RUN, and SKIP to
# the number of arguments that were taken.
begin() {
  SKIP=0
  case ${1:-} in
    "" | -h | --help)
      sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    --dry-run)
      DRY_RUN=1
      SKIP=1
      ;;
  esac
}

# fixed_machines LAUNCHER: leave if NNODES is a range, which only torchrun takes.
fixed_machines() {
  [[ $NNODES =~ ^[0-9]+$ ]] || { echo "${0##*/}: NNODES=$NNODES: $1 takes one number; use launch/torchrun.sh" >&2; exit 2; }
}

# known_address: leave if several machines would have to meet and nobody said where.
known_address() {
  [[ $MASTER_ADDR ]] || { echo "${0##*/}: NNODES=$NNODES needs MASTER_ADDR, the address of the first machine" >&2; exit 2; }
}

# What `mmscale train` is given so that it looks at all machines first; DOCTOR=0 leaves it out.
PREFLIGHT=(--preflight)
if [[ ${DOCTOR:-1} == 0 ]]; then PREFLIGHT=(); fi

# start COMMAND…: run it, or print it if the script was given --dry-run.
start() {
  if [[ ${DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    exec "$@"
  fi
}
