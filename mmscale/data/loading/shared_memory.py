"""A batch on its way from a loader process to training: in blocks of shared memory that are filled
again.

A new block costs a file descriptor, a mapping in both processes and cleared pages: for pictures, a
tenth of what decoding takes. So a loader process keeps its blocks, and fills one anew when training
has let go of every tensor of the batch that lay in it; the block's first byte says so. How many
there are follows from how many batches wait, or are kept.
"""

from __future__ import annotations

import dataclasses
import os
import weakref
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmscale.batch import Batch

_ALIGNMENT = 64  # bytes
# Values of a block's first byte; the batch begins at the first multiple of the alignment.
_FREE, _LENT = 0, 1
SharedBlock = NDArray[np.uint8]

_own: list[Tensor] = []  # blocks of this loader process; loaders are processes, not threads
# By name of the loader, and (process, number of its block).
_received: dict[str, dict[tuple[int, int], SharedBlock]] = {}


class _TensorSlice(NamedTuple):
    """Where a tensor lies in the block."""

    name: str
    dtype: torch.dtype
    shape: list[int]  # the widest steps in memory first
    order: list[int]  # which dimension of that shape is the tensor's first, and so on
    start: int  # byte


@dataclass
class SharedBatch:
    """All tensors of a batch, one behind the other in one block, and its plain fields."""

    # The loader's name, its process, the number; None: ``memory`` holds the batch.
    block: tuple[str, int, int] | None
    memory: Tensor | None  # uint8, the whole block where training does not know it yet
    places: list[_TensorSlice]
    facts: dict[str, Any]

    def pin_memory(self) -> SharedBatch:
        """Called by `torch.utils.data.DataLoader`, in a thread of the training process, when it
        pins memory.
        """
        return dataclasses.replace(self, block=None, memory=_lease(self).pin_memory())


def to_shared(batch: Batch, loader: str) -> SharedBatch:
    """Called in a process of the ``loader`` of that name."""
    tensors = batch.tensors()
    places, size = [], 0
    for name, tensor in tensors.items():
        strides = tensor.stride()
        inner = sorted(range(tensor.ndim), key=lambda axis: -strides[axis])
        shape = [tensor.shape[axis] for axis in inner]
        order = [inner.index(axis) for axis in range(tensor.ndim)]
        places.append(_TensorSlice(name, tensor.dtype, shape, order, size))
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    number, known = _free_block(_ALIGNMENT + size)
    block = _own[number]
    for name, tensor in _views(block[_ALIGNMENT:], places).items():
        tensor.copy_(tensors[name])
    block[0] = _LENT
    return SharedBatch(
        (loader, os.getpid(), number), None if known else block, places, batch.plain()
    )


def from_shared(handed: SharedBatch) -> Batch:
    """The batch, its tensors views of the shared memory. Called in the training process."""
    memory = handed.memory if handed.block is None else _lease(handed)
    assert memory is not None
    return Batch.of(_views(memory, handed.places), handed.facts)


def release(loader: str) -> None:
    """Let go of the blocks of a loader that has ended; batches that still lie in them keep them."""
    _received.pop(loader, None)


def _free_block(size: int) -> tuple[int, bool]:
    """Number of a block of this process that is free and large enough, and whether it was there
    already.
    """
    free = [number for number, block in enumerate(_own) if block.numpy()[0] == _FREE]
    fitting = [number for number in free if len(_own[number]) >= size]
    if fitting:
        return min(fitting, key=lambda number: len(_own[number])), True
    # An eighth more, because the batches of a run are of like size. A free one that is too small
    # goes.
    made = torch.empty(0, dtype=torch.uint8).set_(
        torch.UntypedStorage._new_shared(size + size // 8)
    )
    if free:
        _own[free[0]] = made
        return free[0], False
    _own.append(made)
    return len(_own) - 1, False


def _lease(handed: SharedBatch) -> Tensor:
    """The batch's bytes, in memory that is given back when no tensor uses it any more."""
    assert handed.block is not None
    loader, *which = handed.block
    blocks = _received.setdefault(loader, {})
    if handed.memory is not None:
        blocks[which[0], which[1]] = handed.memory.numpy()
    block = blocks[which[0], which[1]]
    # An array of its own: torch keeps it as long as any tensor lies in its memory.
    lent = block[_ALIGNMENT:]
    weakref.finalize(lent, _give_back, block).atexit = False
    return torch.from_numpy(lent)


def _give_back(block: SharedBlock) -> None:
    block[0] = _FREE


def _views(memory: Tensor, places: list[_TensorSlice]) -> dict[str, Tensor]:
    return {
        name: memory[start : start + prod(shape) * dtype.itemsize]
        .view(dtype)
        .view(shape)
        .permute(order)
        for name, dtype, shape, order, start in places
    }
