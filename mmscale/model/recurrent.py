"""The recurrent mixer: a GRU (Cho et al., 2014) in the place of attention, the small baseline
(``model.fusion: rnn``).

It reads every segment from its start, media as well as text, one position after another; its state
never crosses segments. There is no fast path for it on a GPU: the lengths of segments are read on
the host.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mmscale.model.attention import AttentionPlan
from mmscale.model.cache import State


@dataclass
class TimeMajor:
    """Positions of all segments by their place in the segment, as
    `torch.nn.utils.rnn.PackedSequence` has them.
    """

    flat: Tensor  # int64 [real positions], flat position b * L + l
    batch_sizes: Tensor  # int64 [longest segment], on the host: segments that are so long
    # int64 [segments], row of `flat` with the last position of each, in the order of the segments
    last: Tensor


def time_major(segment_BL: Tensor) -> TimeMajor:
    """Of a packed batch, from its segment numbers."""
    segment = segment_BL.cpu().numpy()
    batch, length = segment.shape
    change = np.ones((batch, length), dtype=bool)
    change[:, 1:] = segment[:, 1:] != segment[:, :-1]
    starts = np.flatnonzero(change.reshape(-1))
    sizes = np.diff(np.append(starts, batch * length))
    real = segment.reshape(-1)[starts] > 0
    starts, sizes = starts[real], sizes[real]
    order = np.argsort(-sizes, kind="stable")
    longest = int(sizes.max(initial=0))
    batch_sizes = (sizes[:, None] > np.arange(longest)).sum(axis=0)
    rows = [starts[order[:count]] + step for step, count in enumerate(batch_sizes.tolist())]
    flat = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    first_of_step = np.cumsum(batch_sizes) - batch_sizes
    last = np.zeros(len(sizes), np.int64)
    last[order] = first_of_step[sizes[order] - 1] + np.arange(len(order))
    device = segment_BL.device
    return TimeMajor(
        torch.from_numpy(flat).to(device),
        torch.from_numpy(batch_sizes),
        torch.from_numpy(last).to(device),
    )


class GruMixer(nn.Module):
    """[B, L, D] → [B, L, D], zero at padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # torch.gru is called with these directly; see `audio_stems.rnn`.
        self.input_weight = nn.Parameter(torch.empty(3 * width, width))
        self.state_weight = nn.Parameter(torch.empty(3 * width, width))
        self.input_bias = nn.Parameter(torch.empty(3 * width))
        self.state_bias = nn.Parameter(torch.empty(3 * width))
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BLD: Tensor, plan: AttentionPlan, memory: State | None = None) -> Tensor:
        weights = (self.input_weight, self.state_weight, self.input_bias, self.state_bias)
        if memory is not None and memory.started:
            return self.o_proj(memory.step(torch.gru_cell(x_BLD[:, 0], memory.state_RD, *weights)))[
                :, None
            ]
        order = plan.time_major
        assert order is not None, "plan made for attention"
        rows = x_BLD.flatten(0, 1)[order.flat]
        if not len(rows):
            return x_BLD * 0
        state = rows.new_zeros(1, int(order.batch_sizes[0]), rows.shape[1])
        kept = torch.is_grad_enabled()
        out, _ = torch.gru(rows, order.batch_sizes, state, list(weights), True, 1, 0.0, kept, False)
        if memory is not None:
            memory.step(out[order.last])
        mixed = torch.zeros_like(x_BLD).flatten(0, 1).index_copy(0, order.flat, self.o_proj(out))
        return mixed.view_as(x_BLD)
