"""A batch on its way from a loader process to training: one block of shared memory instead of thirty.

Every block costs a file descriptor, a mapping and a message, which for small batches is more than the bytes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmscale.batch import Batch

_ALIGNMENT = 64  # bytes


@dataclass
class HandedBatch:
    """All tensors of a batch, one behind the other in shared memory, and its plain fields."""

    memory: Tensor  # uint8 [bytes]
    places: list[tuple[str, torch.dtype, torch.Size, int]]  # name, type, shape, first byte
    facts: dict[str, Any]

    def pin_memory(self) -> HandedBatch:
        """Called by `torch.utils.data.DataLoader` when it pins memory."""
        return dataclasses.replace(self, memory=self.memory.pin_memory())


def hand_over(batch: Batch) -> HandedBatch:
    """Called in the loader process."""
    tensors = batch.tensors()
    places, size = [], 0
    for name, tensor in tensors.items():
        places.append((name, tensor.dtype, tensor.shape, size))
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    memory = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
    handed = HandedBatch(memory, places, {})
    for name, tensor in _views(handed).items():
        tensor.copy_(tensors[name])
    plain = {item.name for item in dataclasses.fields(batch)} - tensors.keys()
    handed.facts = {name: getattr(batch, name) for name in plain}
    return handed


def take_over(handed: HandedBatch) -> Batch:
    """The batch, its tensors views of the shared memory. Called in the training process."""
    fields: dict[str, Any] = {**_views(handed), **handed.facts}
    return Batch(**fields)


def _views(handed: HandedBatch) -> dict[str, Tensor]:
    return {
        name: handed.memory[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
        for name, dtype, shape, start in handed.places
    }
