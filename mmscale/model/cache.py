"""What generation keeps so that no position is computed twice: keys and values, or a recurrent
state.

Every row holds one query. The first pass reads the whole queries, padded on the right; each later
pass one new token a row. Shape suffixes: R rows, L positions of a pass, P positions kept, H heads,
D width of a head or of the model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmscale.model.attention import AttentionPlan, attend


class KeyValues:
    """One block's keys and values, [R, P, kv_heads, D], with room for ``extra`` tokens behind the
    longest query.
    """

    def __init__(self, length_R: Tensor, extra: int) -> None:
        self._length_R, self._extra = length_R, extra
        self._k = self._v = torch.empty(0)

    def attend(self, q_RLHD: Tensor, k_RLHD: Tensor, v_RLHD: Tensor, plan: AttentionPlan) -> Tensor:
        """`attention.attend` over the kept positions and the new ones, which are kept too."""
        if self._k.dim() == 1:  # the first pass: the queries themselves
            room = (0, 0, 0, 0, 0, self._extra)
            self._k, self._v = F.pad(k_RLHD, room), F.pad(v_RLHD, room)
            return attend(q_RLHD, k_RLHD, v_RLHD, plan)
        row = torch.arange(len(self._length_R), device=q_RLHD.device)
        self._k[row, self._length_R], self._v[row, self._length_R] = k_RLHD[:, 0], v_RLHD[:, 0]
        # A new token is text: it sees its whole row up to itself. What lies behind is padding.
        seen_RP = torch.arange(self._k.shape[1], device=row.device) <= self._length_R[:, None]
        self._length_R = self._length_R + 1
        q, k, v = (x.transpose(1, 2) for x in (q_RLHD, self._k, self._v))
        gqa = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen_RP[:, None, None], enable_gqa=gqa
        )
        return out.transpose(1, 2)

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, in this order; a row may be given more than once."""
        self._length_R, self._k, self._v = self._length_R[rows], self._k[rows], self._v[rows]


class State:
    """One block's recurrent state, [R, D]."""

    def __init__(self) -> None:
        self.state_RD = torch.empty(0)

    @property
    def started(self) -> bool:
        """Whether the queries have been read."""
        return self.state_RD.dim() > 1

    def step(self, state_RD: Tensor) -> Tensor:
        """Go on to the next state; returns it."""
        self.state_RD = state_RD
        return state_RD

    def select(self, rows: Tensor) -> None:
        """See `KeyValues.select`."""
        self.state_RD = self.state_RD[rows]


class Cache:
    """What every block keeps of R queries, and where each row's clock stands.

    Args:
        length_R: int64, positions of each query.
        clock_R: int64, rotary position of the next token of each row.
        layers: blocks of the model.
        extra: most new tokens a row.
        recurrent: the model's fusion is recurrent.
    """

    def __init__(
        self, length_R: Tensor, clock_R: Tensor, *, layers: int, extra: int, recurrent: bool = False
    ) -> None:
        self.clock_R = clock_R
        self.blocks: list[KeyValues | State] = [
            State() if recurrent else KeyValues(length_R, extra) for _ in range(layers)
        ]

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, int64, in this order; a row may be given more than once."""
        self.clock_R = self.clock_R[rows]
        for block in self.blocks:
            block.select(rows)
