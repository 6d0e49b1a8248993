"""What `torch.nn.parallel.DistributedDataParallel` holds and sends, for dry runs: its reducer is
C++ and takes no fake tensors.

Its buckets have the size of all gradients and live as long as it does; the gradients are views of
them. A step's last backward pass sums each when it is whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class DryDistributedDataParallel(nn.Module):
    """The part of its interface that `mmscale.parallel.ddp` uses."""

    def __init__(self, module: nn.Module, **unused: Any) -> None:
        super().__init__()
        self.module = module
        self._sums = True
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
            parameter.register_post_accumulate_grad_hook(self._sum)

    def forward(self, *arguments: Any) -> Any:
        """The module's."""
        return self.module(*arguments)

    def register_comm_hook(self, state: Any, hook: Any) -> None:
        """Ours sums, as `_sum` does."""

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients stay this rank's own."""
        self._sums = False
        yield
        self._sums = True

    def _sum(self, parameter: Tensor) -> None:
        if self._sums:
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
