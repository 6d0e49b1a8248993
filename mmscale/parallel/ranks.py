"""Who am I among the ranks: read from the launcher's environment, and the process group that joins
them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from mmscale.config import ParallelConfig
from mmscale.data.worker_pool import available_cores
from mmscale.errors import UserError
from mmscale.parallel.malloc import keep_heap

Result = TypeVar("Result")

# Tokenising a large set for the first time takes hours.
_PATIENCE = timedelta(days=7)
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place. ``local_*`` count the processes of this machine.

    ``data_*`` count those that read sequences of their own: ``parts`` neighbouring ranks, which
    share the matrices or the positions of a model (`ParallelConfig.tensor`, ``context``), read the
    same.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    device: torch.device
    parts: int = 1
    data_group: dist.ProcessGroup | None = None  # one rank of each part; None: all ranks
    # All ranks, for what may take longer than a collective; None: one rank.
    slow_group: dist.ProcessGroup | None = None

    @property
    def data_rank(self) -> int:
        """Which share of a step's sequences is this rank's."""
        return self.rank // self.parts

    @property
    def data_world(self) -> int:
        """How many shares there are."""
        return self.world // self.parts

    @property
    def reports(self) -> bool:
        """True on one of the ranks that read the same sequences: the one whose counts are
        summed.
        """
        return self.rank % self.parts == 0

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes files and shows progress."""
        return self.rank == 0


def meet_ranks(timeout_s: float) -> dist.Store:
    """The store by which the ranks of a launcher find each other, or one of this process alone.

    Raises:
        UserError: the launcher's environment is incomplete, or nobody keeps the store where it
            says.
    """
    read_environment()
    if "RANK" not in os.environ:
        return dist.HashStore()
    try:
        store: dist.Store = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout_s)))[0]
    except RuntimeError as error:
        where = f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ['MASTER_PORT']}"
        raise UserError(
            f"{where}: the ranks cannot meet there ({str(error).splitlines()[0]}); check that the "
            "first one runs and the others reach it"
        ) from None
    store.set_timeout(timedelta(seconds=timeout_s))
    return store


def join_ranks(config: ParallelConfig, store: dist.Store | None = None) -> Ranks:
    """Join the process group the launcher describes, or a group of one if there is no launcher.

    Args:
        config: how the ranks are divided.
        store: what `meet_ranks` gave, if the ranks have met before.

    Raises:
        UserError: the launcher's environment is incomplete, or holds no integers, or the ranks
            cannot be divided as ``config`` asks.
    """
    rank, world, local_rank, local_world = read_environment()
    parts = config.tensor * config.context
    if world % (parts * config.replicas):
        raise UserError(
            f"parallel.tensor={config.tensor}, context={config.context}, "
            f"replicas={config.replicas}: their product does not divide the {world} ranks that "
            "were started"
        )
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"LOCAL_RANK={local_rank}, but this machine has {torch.cuda.device_count()} GPUs; "
                "start fewer processes"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        # Of convolutions: fp32 means fp32, as it does for products.
        torch.backends.cudnn.allow_tf32 = False
        backend = "cpu:gloo,cuda:nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
        keep_heap()
    torch.set_num_threads(config.threads or max(1, available_cores() // local_world))
    timeout = timedelta(seconds=config.timeout_s)
    meeting = dist.PrefixStore("group", store or meet_ranks(config.timeout_s))
    dist.init_process_group(backend, store=meeting, rank=rank, world_size=world, timeout=timeout)
    group = None
    for part in range(parts if parts > 1 else 0):  # every rank takes part in making every group
        made = dist.new_group(list(range(part, world, parts)))
        group = made if part == rank % parts else group
    slow_group = dist.new_group(backend="gloo", timeout=_PATIENCE) if world > 1 else None
    return Ranks(
        rank=rank,
        world=world,
        local_rank=local_rank,
        local_world=local_world,
        device=device,
        parts=parts,
        data_group=group,
        slow_group=slow_group,
    )


def on_first_rank(act: Callable[[], Result], ranks: Ranks) -> Result | None:
    """What ``act`` returns on the first rank; None on the others, which wait for it. Called on
    every rank.

    Raises `UserError` on the first rank if ``act`` does, and `SystemExit` on the others: one
        report is enough.
    """
    result, message = None, [""]
    if ranks.is_first:
        try:
            result = act()
        except UserError as error:
            message = [str(error)]
    if ranks.world > 1:
        dist.broadcast_object_list(message, src=0, group=ranks.slow_group)
    if message[0]:
        if not ranks.is_first:
            raise SystemExit(2)
        raise UserError(message[0])
    return result


def leave_ranks() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()
    zero = sys.modules.get("mmscale.parallel.zero")
    if zero is not None:
        zero.forget_groups()


def read_environment() -> tuple[int, int, int, int]:
    """(rank, world, local rank, local world) as torchrun, accelerate, deepspeed and srun scripts
    set them.
    """
    present = [name for name in _LAUNCHER_VARIABLES if name in os.environ]
    if not present:
        return 0, 1, 0, 1
    if not {"RANK", "WORLD_SIZE"} & set(present):
        return 0, 1, 0, 1  # a master address alone says nothing of ranks
    missing = [name for name in _LAUNCHER_VARIABLES if name not in os.environ]
    if missing:
        raise UserError(
            f"the environment sets {', '.join(present)} but not {', '.join(missing)}; start with "
            "torchrun"
        )
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        # DeepSpeed's launcher calls it otherwise.
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))
    except ValueError:
        raise UserError(
            "RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE must be integers; start with "
            "torchrun"
        ) from None
    if not (0 <= rank < world and local_rank >= 0 and local_world >= 1):
        raise UserError(
            f"RANK={rank} of WORLD_SIZE={world}, LOCAL_RANK={local_rank} of "
            f"LOCAL_WORLD_SIZE={local_world}: ranks count from 0 to one less than their number; "
            "start with torchrun"
        )
    return rank, world, local_rank, local_world
