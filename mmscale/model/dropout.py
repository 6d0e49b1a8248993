"""Dropout whose mask is a function of (seed, step, sequence, place in the network), not of a
generator's state.

The same sequence is dropped alike on any rank, at any world size and when a block is recomputed.
The hash is the finaliser of MurmurHash3 (Appleby, 2011) in wrapping 32-bit integers.
"""

from __future__ import annotations

import torch
from torch import Tensor

_C1, _C2 = -2048144789, -1028477387  # 0x85EBCA6B and 0xC2B2AE35 as signed 32-bit integers
_GOLDEN = -1640531527  # 0x9E3779B9
_POSITIVE = 0x7FFFFFFF


def _hash32(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 16) & 0xFFFF)) * _C1
    x = (x ^ ((x >> 13) & 0x7FFFF)) * _C2
    return x ^ ((x >> 16) & 0xFFFF)


def site_key(key_B: Tensor, site: int) -> Tensor:
    """int32 [B]: the key of a place in the network; every place needs a ``site`` of its own."""
    return _hash32(key_B.to(torch.int32) ^ (site * 0x01000193 & _POSITIVE))


def keyed_dropout(x_BLD: Tensor, share: float, site_key_B: Tensor, first: int = 0) -> Tensor:
    """Zero a ``share``, in [0, 1), of the elements and scale the rest (Srivastava et al., 2014).

    ``first`` is the position in its sequence of the first of the L.
    """
    if share == 0.0:
        return x_BLD
    batch, length, width = x_BLD.shape
    start = first * width
    # No product before the first `^`: a compiler folds it into the index, where it does not wrap.
    counter = torch.arange(start, start + length * width, dtype=torch.int32, device=x_BLD.device)
    noise = _hash32(_hash32(counter[None, :] ^ site_key_B[:, None])) & _POSITIVE
    keep = (noise >= int(share * 2**31)).view(batch, length, width)
    return torch.where(
        keep, x_BLD / (1.0 - share), torch.zeros((), dtype=x_BLD.dtype, device=x_BLD.device)
    )


def depth_factor(share: float, site_key_B: Tensor) -> Tensor:
    """float32 [B]: 0 for a ``share`` of the sequences, the rest scaled: stochastic depth (Huang et
    al., 2016).
    """
    noise = _hash32(site_key_B ^ _GOLDEN) & _POSITIVE
    return (noise >= int(share * 2**31)).float() / (1.0 - share)
