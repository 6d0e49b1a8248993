"""Gathering weights and summing gradients over Gloo: every rank gives every other its part, and
nothing more.

For a reduce-scatter Gloo sums whole tensors on every rank and throws most of them away, which takes
three times as long (`tools/bench_parallel.py`); gathering is two and a half times as quick. NCCL
needs none of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

_PIECE = (
    1 << 18
)  # elements that are received before they are added: a megabyte, which stays in the cache


def use_direct_exchange(unit: FSDPModule) -> None:
    """Let a unit of FSDP2 exchange directly. For ranks that are joined by Gloo, and units on the
    CPU.
    """
    unit.set_custom_all_gather(DirectAllGather())  # type: ignore[arg-type]
    unit.set_custom_reduce_scatter(DirectReduceScatter())  # type: ignore[arg-type]


class _Direct:
    """What FSDP2 asks of either; see `torch.distributed.fsdp.FSDPModule.set_custom_all_gather`."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for what is exchanged."""
        return torch.empty(*size, dtype=dtype, device=device)


class DirectAllGather(_Direct):
    """``output_tensor`` [ranks x n] from each rank's ``input_tensor`` [n]."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> None:
        """Done when it returns, asked to wait or not."""
        parts, rank = output_tensor.view(group.size(), -1), group.rank()
        if parts[rank].data_ptr() != input_tensor.data_ptr():
            parts[rank].copy_(input_tensor)
        works: list[Any] = []
        for to, source in _rounds(group):
            works.append(dist.isend(parts[rank], group=group, group_dst=to))
            works.append(dist.irecv(parts[source], group=group, group_src=source))
        for work in works:
            work.wait()


class DirectReduceScatter(_Direct):
    """``output_tensor`` [n], the sum over ranks of their parts for this one of ``input_tensor``
    [ranks x n].
    """

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        """Done when it returns. Summed in an order that depends on the rank alone, so it can be
        repeated.
        """
        assert op == dist.ReduceOp.SUM, "FSDP is set to sum"
        parts = input_tensor.view(group.size(), -1)
        output_tensor.copy_(parts[group.rank()])
        pieces = list(range(0, len(output_tensor), _PIECE))
        received = [output_tensor.new_empty(min(_PIECE, len(output_tensor))) for _ in range(2)]
        for to, source in _rounds(group):
            sent = [
                dist.isend(parts[to][start : start + _PIECE], group=group, group_dst=to)
                for start in pieces
            ]
            expected: list[tuple[Tensor, Tensor, Any]] = []
            for number, start in enumerate(pieces):  # the next piece comes while one is added
                own = output_tensor[start : start + _PIECE]
                other = received[number % 2][: len(own)]
                expected.append((own, other, dist.irecv(other, group=group, group_src=source)))
                if len(expected) == 2:
                    _add(*expected.pop(0))
            for pending in expected:
                _add(*pending)
            for work in sent:
                assert work is not None
                work.wait()


def _add(own: Tensor, other: Tensor, work: Any) -> None:
    work.wait()
    own += other


def _rounds(group: dist.ProcessGroup) -> Iterator[tuple[int, int]]:
    """(rank to send to, rank to receive from) until every pair has met both ways."""
    rank, world = group.rank(), group.size()
    for distance in range(1, world):
        yield (rank + distance) % world, (rank - distance) % world
