"""Which positions of every sequence this process computes: all, unless `mmscale.parallel` says
otherwise.
"""

from __future__ import annotations

from torch import Tensor


class Positions:
    """All of them.

    Attributes:
        first: the first position computed here.
        part: this process's share of a loss that all who share the positions compute.
        every: which of a batch's targets are this process's.
        shared: whether other processes compute the rest.
    """

    first: int = 0
    part: float = 1.0
    every: slice = slice(None)
    shared: bool = False

    def mine(self, x_BL: Tensor) -> Tensor:
        """What this process computes of a tensor [B, L, …]."""
        return x_BL

    def whole(self, x_BL: Tensor) -> Tensor:
        """[B, L, …] from what every process computed; its gradient is summed over them."""
        return x_BL
