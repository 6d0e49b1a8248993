"""Attention over packed segments: one rule of who sees whom, three ways to compute it.

A position sees the positions of its own segment that come before it, and itself; the tokens of one
picture or clip (a span) also see their whole span. ``visible`` is that rule; every path uses it.

- dense:   one boolean mask [B, 1, L, L] for scaled_dot_product_attention. The reference; quadratic
  in L.
- grouped: segments of like length are gathered into padded groups, so nothing is computed across
  segments. The fast path on CPU, where FlexAttention has no backward.
- flex:    FlexAttention with a block mask. The fast path on GPU, but for short sequences of
  changing lengths, as prediction has them: compiling for each costs more than it saves.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mmscale.batch import Batch
from mmscale.model.positions import Positions

_DENSE_LENGTH = 1024  # of sequences, up to which a GPU that needs no gradients attends densely
# Of a group's segments, up to which attention is written out; its probabilities are kept for the
# backward pass.
_PLAIN_LENGTH = 512
# A group's shortest segment is at least this share of its longest, or within 8 positions.
_GROUP_SLACK = 0.7


def visible(
    segment_q: Tensor, segment_k: Tensor, span_q: Tensor, span_k: Tensor, causal: Tensor
) -> Tensor:
    """The rule. ``causal`` is true where the key's position is not after the query's; all shapes
    broadcast.
    """
    same_span = (span_q == span_k) & (span_q > 0)
    return (segment_q == segment_k) & (causal | same_span)


@dataclass
class SegmentGroup:
    """Segments of like length, padded to the longest: G segments of P positions."""

    size: tuple[int, int]  # (G, P)
    mask: Tensor | None  # bool [G, 1, P, P]; None: plain causal
    _bias: Tensor | None = None

    def bias(self, like: Tensor) -> Tensor:
        """0 where a key is seen and minus infinity elsewhere, [G or 1, 1, P, P], in the type of
        ``like``; made once.
        """
        if self._bias is None or self._bias.dtype != like.dtype:
            length = self.size[1]
            seen = self.mask
            if seen is None:
                seen = torch.ones(1, 1, length, length, dtype=torch.bool, device=like.device).tril()
            self._bias = like.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        return self._bias


@dataclass
class AttentionPlan:
    """How to attend within one batch; made once per forward pass and used by every block."""

    path: str
    _: KW_ONLY
    dense_mask: Tensor | None = None  # bool [B, 1, L, L]
    block_mask: Any = None
    groups: list[SegmentGroup] | None = None
    slot_to_flat: Tensor | None = None  # int64 [slots], flat position each slot of the groups reads
    slot_padding: Tensor | None = None  # int64, slots of no position
    flat_to_slot: Tensor | None = None  # int64 [B * L], slot of each position (0 for padding)
    flat_padding: Tensor | None = None  # int64, flat positions of no slot
    time_major: Any = None  # `recurrent.TimeMajor`, for fusion without attention


def make_plan(batch: Batch, path: str, positions: Positions | None = None) -> AttentionPlan:
    """Plan attention for ``batch``; ``auto`` takes flex or dense on a GPU and grouped elsewhere.

    Queries at some of the positions only (``positions``) are for flex and dense.
    """
    device, positions = batch.segment_BL.device, positions or Positions()
    if path == "auto":
        short = not torch.is_grad_enabled() and batch.segment_BL.shape[1] <= _DENSE_LENGTH
        path = "grouped" if device.type != "cuda" else "dense" if short else "flex"
    if path == "grouped" and positions.shared:
        path = "dense"
    segment, span = batch.segment_BL, batch.span_BL
    if path == "dense":
        length = segment.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        mask = visible(
            segment[:, :, None], segment[:, None, :], span[:, :, None], span[:, None, :], causal
        )
        return AttentionPlan(path, dense_mask=positions.mine(mask)[:, None])
    if path == "flex":
        return AttentionPlan(path, block_mask=_block_mask(segment, span, positions))
    assert path == "grouped", f"no path of attention is named {path!r}"
    return _group_segments(segment, span)


def attend(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, plan: AttentionPlan) -> Tensor:
    """Attention output [B, L, H, D]; keys and values may have fewer heads (grouped-query
    attention).
    """
    if plan.path == "grouped":
        return _attend_grouped(q_BLHD, k_BLHD, v_BLHD, plan)
    gqa = q_BLHD.shape[2] != k_BLHD.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BLHD, v_BLHD))
    if plan.path == "dense":
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=plan.dense_mask, enable_gqa=gqa)
    else:
        assert plan.path == "flex", f"no path of attention is named {plan.path!r}"
        flex = _compiled(flex_attention, q.device.type)
        out = flex(q, k, v, block_mask=plan.block_mask, enable_gqa=gqa)
    return out.transpose(1, 2)


def _block_mask(segment: Tensor, span: Tensor, positions: Positions) -> Any:
    queries = positions.mine(segment).shape[1]
    first = positions.first

    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q = q + first
        return visible(segment[b, q], segment[b, k], span[b, q], span[b, k], q >= k)

    batch, length = segment.shape
    # Compiled, it never has the whole mask in memory.
    make = _compiled(create_block_mask, segment.device.type)
    return make(rule, batch, None, queries, length, device=segment.device)


@cache
def _compiled(function: Any, device: str) -> Any:
    """FlexAttention is only fast compiled; on CPU only tests use it, and compiling costs more than
    it saves.
    """
    return torch.compile(function) if device == "cuda" else function


def _group_segments(segment_BL: Tensor, span_BL: Tensor) -> AttentionPlan:
    device = segment_BL.device
    segment, span = segment_BL.cpu().numpy(), span_BL.cpu().numpy().reshape(-1)
    batch, length = segment.shape
    # A run starts where the segment number changes or a sequence begins.
    change = np.ones((batch, length), dtype=bool)
    change[:, 1:] = segment[:, 1:] != segment[:, :-1]
    starts = np.nonzero(change.reshape(-1))[0]
    sizes = np.diff(np.append(starts, batch * length))
    real = segment.reshape(-1)[starts] > 0
    starts, sizes = starts[real], sizes[real]
    order = np.argsort(-sizes, kind="stable")
    starts, sizes = starts[order], sizes[order]

    flat_to_slot = np.zeros(batch * length, np.int64)
    flat_is_real = np.zeros(batch * length, bool)
    groups, slots, slot_padding = [], [], []
    first = filled = 0
    while first < len(starts):
        longest = int(sizes[first])
        last = int(np.searchsorted(-sizes, -min(longest * _GROUP_SLACK, longest - 8), side="right"))
        last = max(last, first + 1)
        offset = np.arange(longest)
        inside = offset < sizes[first:last, None]  # [G, P]
        flat = starts[first:last, None] + np.where(inside, offset, 0)
        flat_to_slot[flat[inside]] = filled + np.nonzero(inside.reshape(-1))[0]
        flat_is_real[flat[inside]] = True
        slot_padding.append(filled + np.flatnonzero(~inside))
        filled += flat.size
        group_span = np.where(inside, span[flat], 0)
        mask = None
        if group_span.any():
            # Padded keys get segment 0; padded queries keep segment 1 and so see at least one key
            # (no NaN).
            valid = torch.from_numpy(inside).to(device)
            span_t = torch.from_numpy(group_span).to(device)
            causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
            ones = torch.ones_like(span_t)
            mask = visible(
                ones[:, :, None],
                valid.to(ones.dtype)[:, None, :],
                span_t[:, :, None],
                span_t[:, None, :],
                causal,
            )[:, None]
        groups.append(SegmentGroup(flat.shape, mask))
        slots.append(flat.reshape(-1))
        first = last

    def tensor(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, np.int64)).to(
            device
        )

    return AttentionPlan(
        "grouped",
        groups=groups,
        slot_to_flat=tensor(slots),
        slot_padding=tensor(slot_padding),
        flat_to_slot=torch.from_numpy(flat_to_slot).to(device),
        flat_padding=torch.from_numpy(np.flatnonzero(~flat_is_real)).to(device),
    )


class _Gather(torch.autograd.Function):
    """Rows by index where the index is a partial permutation, so the gradient is a gather too, not
    a scatter-add.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor, unused: Tensor) -> Tensor:
        ctx.save_for_backward(inverse, unused)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        inverse, unused = ctx.saved_tensors
        grad = grads[0].contiguous().index_select(0, inverse)
        return grad.index_fill_(0, unused, 0), None, None, None


class _PlainAttention(torch.autograd.Function):
    """Attention written out: [G, P, H, D]. The fused kernel for CPUs takes twice as long, and more
    for few positions.

    The heads that share keys are rows of one product. In bfloat16 the scores are rounded, which
    that kernel's are not; a softmax counts in float32 whatever it is given. The backward pass is
    written out because a masked score's gradient needs no mask: it is zero as its probability is.
    """

    @staticmethod
    def forward(
        ctx: Any, q_GPHD: Tensor, k_GPKD: Tensor, v_GPKD: Tensor, bias_G1PP: Tensor
    ) -> Tensor:
        segments, length, heads, width = q_GPHD.shape
        kv_heads = k_GPKD.shape[2]
        q, k, v = (_by_shared_head(x, kv_heads) for x in (q_GPHD, k_GPKD * width**-0.5, v_GPKD))
        scores = torch.bmm(q, k.transpose(1, 2)).view(kv_heads, segments, -1, length, length)
        shares = scores.add_(bias_G1PP).softmax(-1).view(kv_heads * segments, -1, length)
        ctx.save_for_backward(q, k, v, shares)
        return _by_position(torch.bmm(shares, v), segments, heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, shares = ctx.saved_tensors
        segments, _, heads, width = grads[0].shape
        kv_heads = len(k) // segments
        grad = _by_shared_head(grads[0], kv_heads)
        v_grad = torch.bmm(shares.transpose(1, 2), grad)
        grad = torch.bmm(grad, v.transpose(1, 2))
        grad = torch.ops.aten._softmax_backward_data(grad, shares, -1, shares.dtype)
        k_grad = torch.bmm(grad.transpose(1, 2), q) * width**-0.5
        return (
            _by_position(torch.bmm(grad, k), segments, heads),
            _by_position(k_grad, segments, kv_heads),
            _by_position(v_grad, segments, kv_heads),
            None,
        )


def _by_shared_head(x_GPHD: Tensor, kv_heads: int) -> Tensor:
    """[K G, H / K P, D]: what the same head of the keys answers, or is asked, is one matrix."""
    segments, length, heads, width = x_GPHD.shape
    x = x_GPHD.reshape(segments, length, kv_heads, heads // kv_heads, width).permute(2, 0, 3, 1, 4)
    return x.reshape(kv_heads * segments, -1, width)


def _by_position(x: Tensor, segments: int, heads: int) -> Tensor:
    """Undoes `_by_shared_head`: [G, P, H, D]."""
    kv_heads, width = len(x) // segments, x.shape[2]
    x = x.view(kv_heads, segments, heads // kv_heads, -1, width).permute(1, 3, 0, 2, 4)
    return x.reshape(segments, -1, heads, width)


def _plain_attention(q_GPHD: Tensor, k_GPKD: Tensor, v_GPKD: Tensor, group: SegmentGroup) -> Tensor:
    """Attention written out: [G, P, H, D]."""
    return _PlainAttention.apply(q_GPHD, k_GPKD, v_GPKD, group.bias(q_GPHD))


def _fused_attention(q_GPHD: Tensor, k_GPKD: Tensor, v_GPKD: Tensor, group: SegmentGroup) -> Tensor:
    """PyTorch's kernel: [G, P, H, D]."""
    q, k, v = (x.transpose(1, 2) for x in (q_GPHD, k_GPKD, v_GPKD))
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=group.mask, is_causal=group.mask is None
    )
    return out.transpose(1, 2)


def _attend_grouped(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor, plan: AttentionPlan) -> Tensor:
    batch, length, heads, width = q_BLHD.shape
    kv_heads = k_BLHD.shape[2]
    assert (
        plan.groups is not None and plan.flat_padding is not None and plan.slot_padding is not None
    )
    # One gather for queries, keys and values together.
    qkv = torch.cat([q_BLHD, k_BLHD, v_BLHD], dim=2).reshape(
        batch * length, heads + 2 * kv_heads, width
    )
    if (
        not plan.groups
    ):  # only padding; every matrix still gets a gradient, of zero, for the ranks to agree on
        return torch.zeros_like(q_BLHD) + qkv[:0].sum()
    slots = _Gather.apply(qkv, plan.slot_to_flat, plan.flat_to_slot, plan.flat_padding)
    outs = []
    for group, part in zip(
        plan.groups, slots.split([prod(group.size) for group in plan.groups]), strict=True
    ):
        part = part.view(*group.size, heads + 2 * kv_heads, width)
        attention = _plain_attention if group.size[1] <= _PLAIN_LENGTH else _fused_attention
        q, k, v = part.split([heads, kv_heads, kv_heads], dim=2)
        out = attention(q, k, v, group)
        outs.append(out.reshape(-1, heads, width))
    flat = _Gather.apply(torch.cat(outs), plan.flat_to_slot, plan.slot_to_flat, plan.slot_padding)
    return flat.view(batch, length, heads, width)
