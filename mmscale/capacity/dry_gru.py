"""Recurrent layers for dry runs: `torch.gru` reads lengths of sequences, which tensors without
memory do not have.

Its products are made over all positions at once instead of one after another: as many operations,
and as much that the backward pass needs, but for what pads sequences to the longest.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Packed:
    """Padded sequences, as what `torch.nn.utils.rnn.PackedSequence` shows of itself."""

    data: Tensor  # [sequences * longest, width]
    shape: tuple[int, int]
    batch_sizes: None = None

    def _replace(self, data: Tensor) -> Packed:
        return dataclasses.replace(self, data=data)


def pack(x_NTD: Tensor, *unused: Any, **also_unused: Any) -> Packed:
    """In the place of `torch.nn.utils.rnn.pack_padded_sequence`."""
    return Packed(x_NTD.flatten(0, 1), (x_NTD.shape[0], x_NTD.shape[1]))


def unpack(packed: Packed, **unused: Any) -> tuple[Tensor, None]:
    """In the place of `torch.nn.utils.rnn.pad_packed_sequence`."""
    return packed.data.unflatten(0, packed.shape), None


def gru(
    data: Tensor, batch_sizes: Any, state: Tensor, weights: list[Tensor], *unused: Any
) -> tuple[Tensor, Tensor]:
    """In the place of `torch.gru`."""
    outs = []
    for first in range(0, len(weights), 4):
        input_weight, state_weight, input_bias, state_bias = weights[first : first + 4]
        from_input = F.linear(data, input_weight, input_bias)
        # In the place of the states, which have its size and its gradient.
        before = from_input[:, : state_weight.shape[1]]
        from_state = F.linear(before, state_weight, state_bias)
        reset, update, new = from_input.chunk(3, 1)
        reset_, update_, new_ = from_state.chunk(3, 1)
        update = (update + update_).sigmoid()
        new = (new + (reset + reset_).sigmoid() * new_).tanh()
        outs.append((1 - update) * new + update * before)
    return torch.cat(outs, 1), state
