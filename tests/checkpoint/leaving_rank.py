"""One of two ranks whose training ends with an error while a save begins: ``python -m leaving_rank
FOLDER``.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from mmscale.checkpoint import store as store_module
from mmscale.checkpoint.run_state import RetentionPolicy, RunState
from mmscale.checkpoint.store import CheckpointStore
from mmscale.config import ParallelConfig
from mmscale.parallel.ranks import join_ranks, leave_ranks


def main() -> None:
    ranks = join_ranks(ParallelConfig(timeout_s=180))  # one that leaves is noticed at once
    mesh = init_device_mesh("cpu", (2,))
    tensors = {"model.a": distribute_tensor(torch.arange(8.0).view(4, 2), mesh, [Shard(0)])}
    store = CheckpointStore(Path(sys.argv[1]), RetentionPolicy(9))
    store.save(tensors, RunState(step=1, fingerprint="f" * 64))
    store.wait()
    assert not store.failure, store.failure
    save = store_module.dcp.save

    def late(*arguments, **named):
        if ranks.is_first:  # as `train` does at its end, whatever is being saved
            leave_ranks()
        return save(*arguments, **named)

    store_module.dcp.save = late
    store.save(tensors, RunState(step=2, fingerprint="f" * 64))
    pending = store._pending
    assert pending is not None and pending.exception() is not None, (
        "what one rank has is no checkpoint"
    )
    print(f"rank {ranks.rank}: {pending.exception()!r}"[:300], file=sys.stderr)
    if dist.is_initialized():
        leave_ranks()


if __name__ == "__main__":
    main()
