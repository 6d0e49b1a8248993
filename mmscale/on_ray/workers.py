"""One run's ranks as workers of Ray Train."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any


def make_trainer(
    work: Callable[[dict[str, Any]], Any],
    sent: dict[str, Any],
    *,
    workers: int | tuple[int, int],
    process: dict[str, float],
    max_failures: int,
    storage: str,
    name: str,
    callbacks: list[Any] | None = None,
) -> Any:
    """A `ray.train.torch.TorchTrainer` that calls ``work(sent)`` on ``workers`` processes, or
    (fewest, most) of them.

    A worker or node that is lost starts all of them again, up to ``max_failures`` times, on the
    nodes that are left.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    count: Any = workers  # declared otherwise than it is read: a pair is an elastic range
    return TorchTrainer(
        work,
        train_loop_config=sent,
        scaling_config=ScalingConfig(
            num_workers=count, use_gpu="GPU" in process, resources_per_worker=process
        ),
        run_config=RunConfig(
            name=name, storage_path=storage,
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=callbacks or [],
        ),
    )  # fmt: skip


def leave_rays_group() -> None:
    """Leave the process group that Ray made: a run joins, and leaves, its own."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def meet_anew() -> None:
    """Agree on an address at which the ranks of this worker group meet; called on all of them
    before each run.

    Ray gives every worker its rank. The store of an earlier process group must not be met again.
    """
    from ray.train.collective import broadcast_from_rank_zero

    chosen = None
    if os.environ["RANK"] == "0":
        import ray.util

        with socket.socket() as probe:
            probe.bind(("", 0))
            chosen = ray.util.get_node_ip_address(), probe.getsockname()[1]
    address, port = broadcast_from_rank_zero(chosen)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
