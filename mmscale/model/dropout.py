"""Dropout whose mask is a function of (seed, step, sequence, place in the network), not of a generator's state.

The same sequence is dropped alike on any rank, at any world size and when a block is recomputed.
The hash is the finaliser of MurmurHash3 (Appleby, 2011) in wrapping 32-bit integers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_C1, _C2 = -2048144789, -1028477387  # 0x85EBCA6B and 0xC2B2AE35 as signed 32-bit integers
_GOLDEN = -1640531527  # 0x9E3779B9


def _hash32(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 16) & 0xFFFF)) * _C1
    x = (x ^ ((x >> 13) & 0x7FFFF)) * _C2
    return x ^ ((x >> 16) & 0xFFFF)


class KeyedDropout(nn.Module):
    """Zero a share of the elements and scale the rest (Srivastava et al., 2014).

    Args:
        share: probability of dropping, in [0, 1).
        site: number of this place in the network; every place needs its own.
    """

    def __init__(self, share: float, site: int) -> None:
        super().__init__()
        self.share, self.site = share, site

    def forward(self, x_BLD: Tensor, key_B: Tensor) -> Tensor:
        if not self.training or self.share == 0.0:
            return x_BLD
        batch, length, width = x_BLD.shape
        counter = torch.arange(length * width, dtype=torch.int32, device=x_BLD.device) * _GOLDEN
        key = _hash32(key_B.to(torch.int32) ^ (self.site * 0x01000193 & 0x7FFFFFFF))
        noise = _hash32(counter[None, :] ^ key[:, None]) & 0x7FFFFFFF
        keep = (noise >= int(self.share * 2**31)).view(batch, length, width)
        return torch.where(
            keep, x_BLD / (1.0 - self.share), torch.zeros((), dtype=x_BLD.dtype, device=x_BLD.device)
        )
