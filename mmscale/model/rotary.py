"""Rotary positions in (time, row, column).

RoFormer (Su et al., 2021) rotates pairs of channels by an angle proportional to the position; with
three axes the frequencies are dealt to the axes in turn, as in interleaved multimodal RoPE
(Qwen3-VL, 2025). Text has the same number on all three axes, so its rotation is exactly the
one-dimensional one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(position_BL3: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """(cos, sin), each float32 [B, L, 1, head_dim]."""
    half = head_dim // 2
    index = torch.arange(half, device=position_BL3.device)
    frequency = theta ** (-index.float() / half)
    angle = position_BL3.float().index_select(-1, index % 3) * frequency
    angle = torch.cat([angle, angle], dim=-1)[:, :, None, :]
    return angle.cos(), angle.sin()


def rotate(x_BLHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel i with channel i + D/2; computed in float32, returned in the type of
    ``x_BLHD``.
    """
    x = x_BLHD.float()
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x_BLHD.dtype)
