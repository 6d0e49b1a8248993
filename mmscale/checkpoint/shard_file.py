"""One rank's tensors written as a safetensors file, hashed on their way.

Neither a second copy in memory nor a second pass over the file is needed: the hash is taken by a thread of its own from
the same memory that the kernel copies from. The disk begins while the next bytes are hashed and copied.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from mmscale.checkpoint.tensor_file import DTYPES

_PIECE = 8 << 20  # bytes that are hashed and written at once
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_shard(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> dict[str, int | str]:
    """Write ``tensors`` (on the CPU) and flush them to the disk; returns the file's ``bytes`` and ``sha256``.

    Raises `OSError` if that fails.
    """
    digest, size = hashlib.sha256(), 0
    flushing: Future[None] | None = None
    with ThreadPoolExecutor(2, "shard") as beside, open(path, "wb", buffering=0) as file:
        hashing: Future[None] | None = None
        for piece in _pieces(tensors, metadata):
            if hashing is not None:
                hashing.result()
            hashing = beside.submit(digest.update, piece)
            _write_all(file.fileno(), piece)
            size += len(piece)
            if flushing is None or flushing.done():
                flushing = beside.submit(os.fdatasync, file.fileno())
        os.fsync(file.fileno())
        for one in (hashing, flushing):
            if one is not None:
                one.result()
    return {"bytes": size, "sha256": digest.hexdigest()}


def _pieces(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Iterable[memoryview]:
    """The bytes of the file: its header, then every tensor, the widest types first so that all are aligned."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    tree: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for name in order:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        tree[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    header = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for name in order:
        flat = tensors[name].detach().contiguous().reshape(-1)
        if flat.numel():
            raw = flat.view(torch.uint8).numpy().data
            for start in range(0, len(raw), _PIECE):
                yield raw[start : start + _PIECE]


def _write_all(handle: int, piece: memoryview) -> None:
    """A single write may take less than it was given."""
    while piece:
        piece = piece[os.write(handle, piece) :]
