"""Weights written as safetensors files of bounded size, a few rows at a time, and hashed on their
way.

    model.safetensors, or model-00001-of-0000N.safetensors … with model.safetensors.index.json

Written are the bytes that the safetensors library would write, except that tensors stand in the
model's order. Memory is a few times `_ROWS_BYTES`, whatever the size of the model, of a file or of
a tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mmscale.checkpoint.stored_weights import Weights
from mmscale.checkpoint.tensor_file import DTYPES
from mmscale.errors import UserError
from mmscale.json_file import write_object
from mmscale.release.layout import INDEX, ONE_FILE

# float32 bytes of the rows that are in memory at once, unless a single row has more.
_ROWS_BYTES = 64 << 20
_TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class WrittenWeights:
    """What was written: SHA-256 by file name, and bytes of all tensors together."""

    digests: dict[str, str]
    tensor_bytes: int


def write_weights(
    source: Weights,
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    folder: Path,
    *,
    dtype: torch.dtype,
    max_bytes: int,
) -> WrittenWeights:
    """Write every tensor of ``shapes`` in ``dtype``, in files of at most ``max_bytes`` of tensors
    or of one tensor.

    Args:
        names: what each tensor is called in ``source``.

    Raises:
        UserError: the source's shapes differ, or values are not finite, or do not fit ``dtype``.
        OSError: ``folder`` cannot be written.
    """
    for name, shape in shapes.items():
        stored = source.shape(names[name])
        if stored != shape:
            raise UserError(
                f"{names[name]} has shape {list(stored)} in the checkpoint, the model needs "
                f"{list(shape)}; was model.* changed since it was saved?"
            )
    files = _divide(shapes, dtype, max_bytes)
    digests = {}
    for file, members in files.items():
        digests[file] = _write_file(
            folder / file, source, names, {name: shapes[name] for name in members}, dtype
        )
    total = sum(_size(shape, dtype) for shape in shapes.values())
    if len(files) > 1:
        weight_map = {name: file for file, members in files.items() for name in members}
        write_object(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return WrittenWeights(digests, total)


def write_header(
    file: BinaryIO, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **metadata: str
) -> bytes:
    """Write the header of a safetensors file whose tensors follow in the order of ``shapes``;
    returns its bytes.
    """
    tree: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    at = 0
    for name, shape in shapes.items():
        end = at + _size(shape, dtype)
        tree[name] = {"dtype": _TYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)  # so that the tensors are aligned
    head = len(raw).to_bytes(8, "little") + raw
    file.write(head)
    return head


def _divide(
    shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, max_bytes: int
) -> dict[str, list[str]]:
    """Names of the files, each with its tensors, in the model's order."""
    parts: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = _size(shape, dtype)
        if parts[-1] and filled + size > max_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(name)
        filled += size
    if len(parts) == 1:
        return {ONE_FILE: parts[0]}
    return {
        f"model-{n:05d}-of-{len(parts):05d}.safetensors": part
        for n, part in enumerate(parts, start=1)
    }


def _write_file(
    path: Path,
    source: Weights,
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
) -> str:
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        digest.update(write_header(file, shapes, dtype))
        for name, shape in shapes.items():
            at_once = max(1, _ROWS_BYTES // max(1, _size(shape[1:], torch.float32)))
            for start in range(0, shape[0], at_once):
                rows = source.rows(names[name], start, min(start + at_once, shape[0]))
                raw = _checked(names[name], rows, dtype).reshape(-1).view(torch.uint8).numpy().data
                file.write(raw)
                digest.update(raw)
    return digest.hexdigest()


def _checked(name: str, rows: Tensor, dtype: torch.dtype) -> Tensor:
    cast = rows.to(dtype)
    if not bool(cast.isfinite().all()):
        if bool(rows.isfinite().all()):
            raise UserError(
                f"{name} holds values beyond the range of {str(dtype).removeprefix('torch.')}; "
                "export with --dtype bfloat16 or float32"
            )
        raise UserError(f"{name} holds values that are not finite; export an earlier checkpoint")
    return cast


def _size(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize
