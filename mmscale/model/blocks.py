"""The fusion block: pre-norm attention and SwiGLU, as in Qwen3 (Qwen team, 2025) on the text path.

Shape suffixes: B sequences, L positions, D model width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmscale.config import ModelConfig
from mmscale.model.attention import AttentionPlan, attend
from mmscale.model.dropout import KeyedDropout
from mmscale.model.rotary import rotate


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last axis (Zhang and Sennrich, 2019), computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Grouped-query attention with RMS-normalised queries and keys and rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.width, config.heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.width, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x_BLD: Tensor, cos: Tensor, sin: Tensor, plan: AttentionPlan) -> Tensor:
        batch, length, _ = x_BLD.shape
        q = self.q_norm(self.q_proj(x_BLD).view(batch, length, self.heads, self.head_dim))
        k = self.k_norm(self.k_proj(x_BLD).view(batch, length, self.kv_heads, self.head_dim))
        v = self.v_proj(x_BLD).view(batch, length, self.kv_heads, self.head_dim)
        out = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, plan)
        return self.o_proj(out.reshape(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One pre-norm fusion block."""

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.width, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.attention_dropout = KeyedDropout(config.dropout, 2 * number + 1)
        self.feed_forward_dropout = KeyedDropout(config.dropout, 2 * number + 2)

    def forward(
        self, x_BLD: Tensor, cos: Tensor, sin: Tensor, plan: AttentionPlan, dropout_key_B: Tensor
    ) -> Tensor:
        attended = self.attention(self.attention_norm(x_BLD), cos, sin, plan)
        x_BLD = x_BLD + self.attention_dropout(attended, dropout_key_B)
        fed = self.feed_forward(self.feed_forward_norm(x_BLD))
        return x_BLD + self.feed_forward_dropout(fed, dropout_key_B)
