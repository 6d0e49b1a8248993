"""The fusion block: pre-norm mixing of positions and SwiGLU, as in Qwen3 (Qwen team, 2025) on the
text path.

Positions are mixed by attention, or by a recurrent layer (`mmscale.model.recurrent`).
Shape suffixes: B sequences, L positions, D model width, H heads, T positions of one modality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmscale.batch import Batch
from mmscale.config import ModelConfig
from mmscale.model.attention import AttentionPlan
from mmscale.model.cache import KeyValues
from mmscale.model.dropout import depth_factor, keyed_dropout, site_key
from mmscale.model.operators import Operators
from mmscale.model.positions import Positions
from mmscale.model.recurrent import GruMixer
from mmscale.model.rotary import rotate

MODALITIES = ("text", "image", "audio")


@dataclass(kw_only=True)
class BlockInputs:
    """Where the positions of a batch are and what they hold; the same for every block."""

    cos: Tensor  # float32 [B, L, 1, head_dim]
    sin: Tensor
    plan: AttentionPlan
    modality_BL: Tensor  # int64, index into `MODALITIES`; 0 for padding
    routes: tuple[Tensor, Tensor, Tensor]  # int64 [T], flat positions of each modality
    dropout_key_B: Tensor
    positions: Positions


def block_inputs(
    batch: Batch, cos: Tensor, sin: Tensor, plan: AttentionPlan, positions: Positions
) -> BlockInputs:
    """Of a packed batch."""
    modality = (batch.kind_BL.long() - 1).clamp(min=0)
    return BlockInputs(
        cos=positions.mine(cos),
        sin=positions.mine(sin),
        plan=plan,
        modality_BL=positions.mine(modality),
        routes=(batch.text_at_T, batch.image_at_T, batch.audio_at_T),
        dropout_key_B=batch.dropout_key_B,
        positions=positions,
    )


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last axis (Zhang and Sennrich, 2019), computed in
    float32.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor, modality_BL: Tensor | None = None) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


class ModalRMSNorm(nn.Module):
    """`RMSNorm` with weights of each modality's own (Mixture-of-Transformers: Liang et al.,
    2024).
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        for name in MODALITIES:
            self.add_module(f"{name}_norm", RMSNorm(width, eps))
        self.eps = eps

    def forward(self, x_BLD: Tensor, modality_BL: Tensor) -> Tensor:
        # Not `get_parameter`: `functional_call` puts plain tensors in their place.
        norms = (self.get_submodule(f"{name}_norm") for name in MODALITIES)
        weights = torch.stack([cast(Tensor, norm.weight) for norm in norms])
        normed = F.rms_norm(x_BLD.float(), x_BLD.shape[-1:], eps=self.eps).to(x_BLD.dtype)
        return normed * F.embedding(modality_BL, weights)


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

    def project(self, x_BLD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, L, H, …], keys and values [B, L, kv_heads, …]."""
        batch, length, _ = x_BLD.shape
        q = self.q_norm(self.q_proj(x_BLD).view(batch, length, self.heads, self.head_dim))
        k = self.k_norm(self.k_proj(x_BLD).view(batch, length, self.kv_heads, self.head_dim))
        v = self.v_proj(x_BLD).view(batch, length, self.kv_heads, self.head_dim)
        return rotate(q, cos, sin), rotate(k, cos, sin), v


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor, routes: tuple[Tensor, ...] | None = None) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class ModalFeedForward(nn.Module):
    """`FeedForward` with weights of each modality's own. A modality the batch lacks gets a gradient
    of zero.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        for name in MODALITIES:
            self.add_module(name, FeedForward(config))

    def forward(self, x_BLD: Tensor, routes: tuple[Tensor, ...]) -> Tensor:
        x = x_BLD.flatten(0, 1)
        out = torch.zeros_like(x)
        for name, at_T in zip(MODALITIES, routes, strict=True):
            out = out.index_copy(0, at_T, self.get_submodule(name)(x[at_T]))
        return out.view_as(x_BLD)


class Block(nn.Module):
    """One pre-norm fusion block.

    ``project`` and ``combine`` are all of it but the mixing of positions; `mmscale.parallel` may
    compile them.
    """

    operators = Operators()

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        norm = ModalRMSNorm if "norm" in config.untied else RMSNorm
        self.attention_norm = norm(config.width, config.norm_eps)
        assert config.fusion in ("transformer", "rnn"), f"model.fusion={config.fusion}: unknown"
        self.recurrent = config.fusion == "rnn"
        if self.recurrent:
            self.mixer = GruMixer(config.width)
        else:
            self.attention = Attention(config)
        self.feed_forward_norm = norm(config.width, config.norm_eps)
        self._untied = "feed_forward" in config.untied
        self.feed_forward = ModalFeedForward(config) if self._untied else FeedForward(config)
        self._number, self._dropout = number, config.dropout
        # Deeper blocks are left out more often, the first of them never.
        self._left_out = config.stochastic_depth * number / max(1, config.layers - 1)

    def forward(self, x_BLD: Tensor, places: BlockInputs, memory: Any = None) -> Tensor:
        """``memory`` is this block's part of a `cache.Cache`: what generation must not compute
        again.
        """
        factors = self._factors(places.dropout_key_B)
        if self.recurrent:
            mixed = self.mixer(self.attention_norm(x_BLD, places.modality_BL), places.plan, memory)
        else:
            q, k, v = self.project(x_BLD, places.cos, places.sin, places.modality_BL)
            k, v = places.positions.whole(k), places.positions.whole(v)
            assert memory is None or isinstance(memory, KeyValues)
            mixed = (
                self.operators.attend(q, k, v, places.plan)
                if memory is None
                else memory.attend(q, k, v, places.plan)
            )
        # Only where they are used: their lengths change with every batch, and compiled code is for
        # one length.
        routes = places.routes if self._untied else ()
        first = places.positions.first
        return self.combine(x_BLD, mixed, places.modality_BL, routes, first, *factors)

    def project(
        self, x_BLD: Tensor, cos: Tensor, sin: Tensor, modality_BL: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From the residual stream to queries, keys and values."""
        return self.attention.project(self.attention_norm(x_BLD, modality_BL), cos, sin)

    def combine(
        self,
        x_BLD: Tensor,
        mixed: Tensor,
        modality_BL: Tensor,
        routes: tuple[Tensor, ...],
        first: int,
        *factors: Tensor,
    ) -> Tensor:
        """From what was mixed, and the residual stream before it, to the residual stream after the
        block.
        """
        if not self.recurrent:
            mixed = self.attention.o_proj(mixed.flatten(2))
        x_BLD = x_BLD + self._thin(mixed, first, factors[:2])
        fed = self.feed_forward(self.feed_forward_norm(x_BLD, modality_BL), routes)
        return x_BLD + self._thin(fed, first, factors[2:])

    def _factors(self, dropout_key_B: Tensor) -> list[Tensor]:
        """Of each of the two branches: the key of its dropout, and its factor of stochastic
        depth.
        """
        if not self.training or (self._dropout == 0.0 and self._left_out == 0.0):
            return []
        factors = []
        for branch in (1, 2):
            key = site_key(dropout_key_B, 2 * self._number + branch)
            factors += [key, depth_factor(self._left_out, key)]
        return factors

    def _thin(self, x_BLD: Tensor, first: int, factors: tuple[Tensor, ...]) -> Tensor:
        if not factors:
            return x_BLD
        key, factor_B = factors
        return keyed_dropout(x_BLD, self._dropout, key, first) * factor_B[:, None, None].to(
            x_BLD.dtype
        )
