"""Weights of a training checkpoint, read a few rows at a time, whatever number of ranks wrote it.

Every rank's safetensors file holds its shards; where each begins in its tensor stands in the file's
metadata (``DCP_SHARDING_INFO``, as PyTorch's distributed checkpointing writes it). No process group
is needed, nothing is mapped, and memory is what is asked for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from mmscale.checkpoint.tensor_file import StoredTensor, read_tensor_files
from mmscale.errors import UserError
from mmscale.plain_file import open_plain

_SHARDING = "DCP_SHARDING_INFO"
_REMEDY = "remove the checkpoint and use an older one"


class Weights(Protocol):
    """Named tensors of which rows can be read."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole tensor's shape. Raises `UserError` if there is none of this name."""

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """float32 rows ``start`` to ``stop`` along the first axis. Raises `UserError` if they
        cannot be read.
        """


@dataclass(frozen=True)
class _StoredRows:
    """One rank's part of a tensor."""

    path: Path
    stored: StoredTensor
    offsets: tuple[int, ...]  # where it begins in the whole tensor


class StoredWeights:
    """The tensors of one checkpoint folder; see `Weights`.

    Raises:
        UserError: a file's header lies, or the shards of a tensor do not make a whole one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pieces: dict[str, list[_StoredRows]] = {}
        for file in read_tensor_files(sorted(folder.glob("*.safetensors")), _REMEDY):
            begins = _offsets(file.path, file.metadata)
            for name, stored in file.tensors.items():
                if not stored.shape:
                    continue  # a single number has no rows; no weight is one
                offsets = _begin(file.path, name, begins, len(stored.shape))
                self._pieces.setdefault(name, []).append(_StoredRows(file.path, stored, offsets))
        self._shapes = {name: self._whole(name, pieces) for name, pieces in self._pieces.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Weights`."""
        if name not in self._shapes:
            raise UserError(
                f"{self._folder}: holds no tensor {name}; was model.* changed since it was saved?"
            )
        return self._shapes[name]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """See `Weights`."""
        shape = self.shape(name)
        assert 0 <= start <= stop <= shape[0]
        out = torch.empty((stop - start, *shape[1:]))
        for piece in self._pieces[name]:
            first = piece.offsets[0]
            low, high = max(start, first), min(stop, first + piece.stored.shape[0])
            if low < high:
                place = (slice(low - start, high - start), *self._columns(piece))
                out[place] = _read(piece, low - first, high - first)
        return out

    def _columns(self, piece: _StoredRows) -> tuple[slice, ...]:
        sizes = piece.stored.shape[1:]
        return tuple(slice(o, o + size) for o, size in zip(piece.offsets[1:], sizes, strict=True))

    def _whole(self, name: str, pieces: list[_StoredRows]) -> tuple[int, ...]:
        """The shape that the pieces cover, each place once."""
        ends = [
            tuple(o + size for o, size in zip(piece.offsets, piece.stored.shape, strict=True))
            for piece in pieces
        ]
        if len({len(end) for end in ends}) != 1:
            raise UserError(f"{self._folder}: the shards of {name} do not fit together; {_REMEDY}")
        shape = tuple(max(sizes) for sizes in zip(*ends, strict=True))
        covered = sum(math.prod(piece.stored.shape) for piece in pieces)
        if covered != math.prod(shape) or _overlapping(pieces, ends):
            raise UserError(
                f"{self._folder}: the shards of {name} do not make a whole tensor; {_REMEDY}"
            )
        return shape


class MeanOfWeights:
    """The mean of several checkpoints' weights (model soups: Wortsman et al., 2022); see
    `Weights`.
    """

    def __init__(self, sources: Sequence[Weights]) -> None:
        self._sources = sources

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Weights`. All sources have the same."""
        shapes = {source.shape(name) for source in self._sources}
        if len(shapes) != 1:
            raise UserError(
                f"--merge: {name} has different shapes in the runs; merge runs of one model"
            )
        return shapes.pop()

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """See `Weights`. Summed in float64, so that the order of the runs does not matter."""
        total = self._sources[0].rows(name, start, stop).double()
        for source in self._sources[1:]:
            total += source.rows(name, start, stop)
        return (total / len(self._sources)).float()


def fill_from(source: Weights, tensors: dict[str, Tensor]) -> None:
    """Copy whole tensors, by their names in ``source``, into ``tensors``. Raises `UserError` where
    shapes differ.
    """
    for name, tensor in tensors.items():
        if source.shape(name) != tuple(tensor.shape):
            raise UserError(
                f"{name} has shape {list(source.shape(name))} in the checkpoint, the model needs "
                f"{list(tensor.shape)}; was model.* changed since it was saved?"
            )
        tensor.copy_(source.rows(name, 0, len(tensor)))


def _read(piece: _StoredRows, low: int, high: int) -> Tensor:
    stored = piece.stored
    row = math.prod(stored.shape[1:]) * stored.dtype.itemsize
    raw = bytearray((high - low) * row)
    try:
        with open_plain(piece.path) as file:
            file.seek(stored.start + low * row)
            count = file.readinto(raw)
    except OSError as error:
        raise UserError(f"{piece.path}: cannot be read ({error.strerror}); {_REMEDY}") from None
    if count != len(raw):
        raise UserError(f"{piece.path}: was cut short while it was read; {_REMEDY}")
    shape = (high - low, *stored.shape[1:])
    if not raw:
        return torch.empty(shape, dtype=stored.dtype)
    return torch.frombuffer(raw, dtype=stored.dtype).view(shape)


def _offsets(path: Path, metadata: dict[str, str]) -> dict[str, object] | None:
    """What the metadata says of where tensors begin; None: nothing, so all are whole."""
    if _SHARDING not in metadata:
        return None
    try:
        tree = json.loads(metadata[_SHARDING])
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: damaged ({_SHARDING} is no JSON object); {_REMEDY}")
    return tree


def _begin(
    path: Path, name: str, begins: dict[str, object] | None, dimensions: int
) -> tuple[int, ...]:
    if begins is None:
        return (0,) * dimensions
    facts = begins.get(name)
    offsets = facts.get("saved_offsets") if isinstance(facts, dict) else None
    if (
        not isinstance(offsets, list)
        or len(offsets) != dimensions
        or not all(type(offset) is int and 0 <= offset < 1 << 62 for offset in offsets)
    ):
        raise UserError(f"{path}: damaged (where {name[:60]!r} begins is not said); {_REMEDY}")
    return tuple(offsets)


def _overlapping(pieces: list[_StoredRows], ends: list[tuple[int, ...]]) -> bool:
    """Whether two pieces share a place; pieces without elements share none."""
    boxes = sorted(
        (piece.offsets, end)
        for piece, end in zip(pieces, ends, strict=True)
        if math.prod(piece.stored.shape)
    )
    for number, (begin, end) in enumerate(boxes):
        for other_begin, other_end in boxes[number + 1 :]:
            if other_begin[0] >= end[0]:
                break  # boxes are sorted by their first row
            if all(
                a < d and c < b
                for a, b, c, d in zip(begin, end, other_begin, other_end, strict=True)
            ):
                return True
    return False
