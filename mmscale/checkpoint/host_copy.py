"""A copy in host memory of all that a checkpoint holds: what training waits for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor


class HostCopy:
    """Takes copies into the same memory again and again: memory that was used before is much faster
    to write to.

    The first copy is PyTorch's, which knows how to copy tensors that are divided over ranks.
    """

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}

    def take(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of ``tensors``, by name, which the next call overwrites."""
        if not self._fits(tensors):
            # A new one each time: that of torch 2.11 fails at tensors unlike those it saw before.
            copies = DefaultStager(StagingOptions(False, False, False, False)).stage(tensors)
            assert isinstance(copies, dict)
            self._copies = copies
            return copies
        with torch.no_grad():
            for name, tensor in tensors.items():
                _local(self._copies[name]).copy_(_local(tensor), non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._copies

    def _fits(self, tensors: dict[str, Tensor]) -> bool:
        def facts(tensor: Tensor) -> tuple[object, ...]:
            return (
                tensor.shape,
                _local(tensor).shape,
                tensor.dtype,
                getattr(tensor, "placements", None),
            )

        return self._copies.keys() == tensors.keys() and all(
            facts(self._copies[name]) == facts(tensor) for name, tensor in tensors.items()
        )


def _local(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor
