"""Recurrent layers for dry runs: `torch.gru` reads lengths of sequences, which tensors without
memory do not have.

Its products are made over all positions at once instead of one after another: as many operations,
and as much that the backward pass needs, but for what pads sequences to the longest.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class _Packed:
    data: Tensor  # [sequences * longest, width]
    shape: tuple[int, int]
    batch_sizes: None = None

    def _replace(self, data: Tensor) -> _Packed:
        return dataclasses.replace(self, data=data)


def _pack(x_NTD: Tensor, *unused: Any, **also_unused: Any) -> _Packed:
    return _Packed(x_NTD.flatten(0, 1), (x_NTD.shape[0], x_NTD.shape[1]))


def _unpack(packed: _Packed, **unused: Any) -> tuple[Tensor, None]:
    return packed.data.unflatten(0, packed.shape), None


def _gru(
    data: Tensor, batch_sizes: Any, state: Tensor, weights: list[Tensor], *unused: Any
) -> tuple[Tensor, Tensor]:
    outs = []
    for first in range(0, len(weights), 4):
        input_weight, state_weight, input_bias, state_bias = weights[first : first + 4]
        given = F.linear(data, input_weight, input_bias)
        before = given[
            :, : state_weight.shape[1]
        ]  # in the place of the states, which have its size and its gradient
        kept = F.linear(before, state_weight, state_bias)
        (reset, update, new), (reset_, update_, new_) = given.chunk(3, 1), kept.chunk(3, 1)
        update = (update + update_).sigmoid()
        new = (new + (reset + reset_).sigmoid() * new_).tanh()
        outs.append((1 - update) * new + update * before)
    return torch.cat(outs, 1), state


@contextlib.contextmanager
def dry_recurrence() -> Iterator[None]:
    """While active, recurrent layers take tensors without memory."""
    with (
        mock.patch("torch.gru", _gru),
        mock.patch("torch.nn.utils.rnn.pack_padded_sequence", _pack),
        mock.patch("torch.nn.utils.rnn.pad_packed_sequence", _unpack),
    ):
        yield
