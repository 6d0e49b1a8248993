"""A safetensors file: its header read strictly, believed only where the file can hold what it says;
its tensors mapped.

Format: 8 bytes little-endian length of the header, the header (JSON), then the tensors' bytes
without gaps. <https://github.com/huggingface/safetensors#format>. Nothing is allocated for the
data.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mmscale.errors import UserError
from mmscale.plain_file import open_plain

# A tensor takes about 150 bytes; a file with more than a hundred thousand is none of ours.
MAX_HEADER_BYTES = 16 << 20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_MAX_DIMENSIONS = 16
_READ_AT_ONCE = 16
_REMEDY = "copy it again, whole"
_METADATA = "__metadata__"


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # first byte in the file
    stop: int  # byte behind the last


@dataclass(frozen=True)
class TensorFile:
    """Every tensor of a safetensors file by name, and its metadata."""

    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]


def read_tensor_file(path: Path, remedy: str = _REMEDY) -> TensorFile:
    """The header of ``path``.

    Raises:
        UserError: the file is missing, is no plain file, or its header lies: too long, no JSON,
            names twice, unknown types, shapes that do not fit their bytes, tensors that overlap,
            leave gaps or lie outside of the file.
    """
    try:
        with open_plain(path) as file:
            return _parse(path, file, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except _Damage as fault:
        raise UserError(f"{path}: damaged ({fault}); {remedy}") from None


def read_tensor_files(paths: Sequence[Path], remedy: str = _REMEDY) -> list[TensorFile]:
    """`read_tensor_file` of each: their first bytes are awaited together, which counts on a
    network's disk.

    Raises:
        UserError: as `read_tensor_file`, for the first of ``paths`` that is at fault.
    """
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        return list(pool.map(lambda path: read_tensor_file(path, remedy), paths))


def map_tensors(file: TensorFile, remedy: str = _REMEDY) -> dict[str, Tensor]:
    """The tensors of ``file`` by name, mapped: a page is read when it is first used, and never
    written back.

    (`safetensors` reads the first page of every tensor that it is asked for, and the system
    megabytes with each.)

    Raises:
        UserError: the file cannot be mapped.
    """
    if not file.tensors:
        return {}
    size = max(stored.stop for stored in file.tensors.values())
    try:
        raw = torch.from_file(str(file.path), shared=False, size=size, dtype=torch.uint8)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{file.path}: cannot be mapped ({str(error).splitlines()[0]}); {remedy}"
        ) from None
    mapped = {}
    for name, stored in file.tensors.items():
        part = raw[stored.start : stored.stop]
        if stored.start % stored.dtype.itemsize:
            part = part.clone()  # the format allows it, though nobody writes it
        mapped[name] = part.view(stored.dtype).view(stored.shape)
    return mapped


class _Damage(Exception):
    """What is wrong with a header."""


def _parse(path: Path, file: BinaryIO, size: int) -> TensorFile:
    if size < 8:
        raise _Damage(f"{size} bytes are no tensor file")
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise _Damage(f"its header is said to have {length} bytes, the file has {size}")
    raw = file.read(length)
    if len(raw) != length or not raw.startswith(b"{"):
        raise _Damage("its header is no JSON object")
    try:
        tree = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise _Damage(
            f"its header is no JSON object: {' '.join(str(error).split())[:100]}"
        ) from None
    metadata = tree.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(
        isinstance(text, str) for text in metadata.values()
    ):
        raise _Damage(f"{_METADATA} is no mapping of names to texts")
    first = 8 + length
    tensors = {name: _tensor(name, facts, first) for name, facts in tree.items()}
    end = first
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if stored.start != end:
            what = "overlaps another tensor" if stored.start < end else "lies behind a gap"
            raise _Damage(f"{_short(name)} {what}")
        end = stored.stop
    if end != size:
        raise _Damage(f"its tensors end at byte {end}, the file at {size}")
    return TensorFile(path, tensors, metadata)


def _tensor(name: str, facts: Any, first: int) -> StoredTensor:
    if not isinstance(facts, dict) or facts.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Damage(f"{_short(name)} has not dtype, shape and data_offsets")
    shape, offsets = facts["shape"], facts["data_offsets"]
    if not isinstance(facts["dtype"], str) or facts["dtype"] not in DTYPES:
        raise _Damage(f"{_short(name)} is of an unknown type")
    if not _naturals(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _Damage(f"the shape of {_short(name)} is none")
    if not _naturals(offsets) or len(offsets) != 2:
        raise _Damage(f"the data_offsets of {_short(name)} are not two numbers")
    dtype = DTYPES[facts["dtype"]]
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise _Damage(f"the shape of {_short(name)} does not fit its bytes")
    return StoredTensor(dtype, tuple(shape), first + offsets[0], first + offsets[1])


def _naturals(value: Any) -> bool:
    """A list of integers, each below 2**63; true and false are none."""
    return isinstance(value, list) and all(
        type(number) is int and 0 <= number < 1 << 63 for number in value
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{_short(max(names, key=names.count))} stands twice")
    return tree


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _short(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:60] + "…")
