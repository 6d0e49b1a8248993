"""The recurrent mixer: a GRU (Cho et al., 2014) in the place of attention, the small baseline
(``model.fusion: rnn``).

It reads every segment from its start, media as well as text, one position after another; its state
never crosses segments. There is no fast path for it on a GPU: the lengths of segments are read on
the host.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmscale.model.attention import AttentionPlan
from mmscale.model.cache import State
from mmscale.model.operators import Operators


class GruMixer(nn.Module):
    """[B, L, D] → [B, L, D], zero at padding."""

    operators = Operators()

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
        out, _ = self.operators.gru(
            rows, order.batch_sizes, state, list(weights), True, 1, 0.0, kept, False
        )
        if memory is not None:
            memory.step(out[order.last])
        mixed = torch.zeros_like(x_BLD).flatten(0, 1).index_copy(0, order.flat, self.o_proj(out))
        return mixed.view_as(x_BLD)
