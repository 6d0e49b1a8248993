"""Which ranks share a machine, as the launcher says."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import torch.distributed as dist

from mmscale.parallel.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This rank's machine.

    Attributes:
        readers: the readers of a step's sequences that stand here (`Ranks.data_rank`).
        local_rank: this rank among the processes of the machine.
        ranks: those processes.
        start: a name of this start of the run, the same on every rank, and for this machine.
    """

    readers: range
    local_rank: int
    ranks: int
    start: str


def find_machine(ranks: Ranks) -> Machine:
    """Ask every rank where it stands. Called on every rank.

    Where the ranks of a machine do not follow each other, or a reader is spread over machines, all
    readers count as of one machine: what a machine reads is dealt among its own, and all ranks must
    deal alike.
    """
    first = ranks.rank - ranks.local_rank
    mine = (first, ranks.local_world, secrets.token_hex(8))
    everyone = [mine]
    if ranks.world > 1:
        gathered: list[tuple[int, int, str] | None] = [None] * ranks.world
        dist.all_gather_object(gathered, mine, group=ranks.slow_group)
        everyone = [one for one in gathered if one is not None]
    readers = range(first // ranks.parts, (first + ranks.local_world) // ranks.parts)
    if not _is_plain([one[:2] for one in everyone], ranks.parts):
        readers = range(ranks.data_world)
    return Machine(
        readers=readers,
        local_rank=ranks.local_rank,
        ranks=ranks.local_world,
        start=f"{everyone[0][2]}-{first}",
    )


def _is_plain(stands: list[tuple[int, int]], parts: int) -> bool:
    """Whether machines hold neighbouring ranks and whole readers; of each rank, the first rank of
    its machine and their number.
    """
    return all(
        first <= rank < first + count <= len(stands)
        and first % parts == count % parts == 0
        and set(stands[first : first + count]) == {(first, count)}
        for rank, (first, count) in enumerate(stands)
    )
