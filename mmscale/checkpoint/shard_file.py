"""One rank's tensors written as a safetensors file, hashed on their way.

No second pass over the file is needed: each piece is hashed when it is given to the file. The disk
works meanwhile.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from mmscale.checkpoint.direct_file import DirectFile
from mmscale.checkpoint.tensor_file import DTYPES

_PIECE = 1 << 20  # bytes that are hashed and then copied, while they are near the processor
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_shard(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> dict[str, int | str]:
    """Write ``tensors`` (on the CPU) and flush them to the disk; returns the file's ``bytes`` and
    ``sha256``.

    Raises `OSError` if that fails.
    """
    digest = hashlib.sha256()
    with DirectFile(path) as file:
        for piece in _pieces(tensors, metadata):
            digest.update(piece)
            file.write(piece)
        file.finish()
    return {"bytes": file.size, "sha256": digest.hexdigest()}


def _pieces(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Iterable[memoryview]:
    """The bytes of the file: its header, then every tensor, the widest types first so that all are
    aligned.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    tree: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for name in order:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        tree[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
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
