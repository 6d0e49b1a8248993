"""What a model computes with: the operators that read numbers of their tensors, or that come as
one fused kernel on a GPU.

Modules that need one have an attribute `operators`, whose default is `Operators()`. A dry run
(`mmscale.capacity`) has tensors without memory and gives them others by `use_operators`; so may
whoever brings a kernel of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mmscale.batch import Batch
from mmscale.model.attention import AttentionPlan, attend, make_plan
from mmscale.model.positions import Positions
from mmscale.model.time_major import TimeMajor, time_major


@dataclass(frozen=True, kw_only=True)
class Operators:
    """Each has the signature and the meaning of its default.

    Attributes:
        make_plan: plans attention for a batch, once a forward pass.
        attend: attention by that plan.
        time_major: the same for a recurrent mixer: the order of the positions.
        gru: a recurrent layer.
        pack, unpack: clips of several lengths, before and after a recurrent layer.
        many_logits: whether as many logits exist at once as on a GPU; None: by where they are.
    """

    make_plan: Callable[[Batch, str, Positions], AttentionPlan] = make_plan
    attend: Callable[[Tensor, Tensor, Tensor, AttentionPlan], Tensor] = attend
    time_major: Callable[[Tensor], TimeMajor] = time_major
    gru: Callable[..., tuple[Tensor, Tensor]] = torch.gru
    pack: Callable[..., Any] = pack_padded_sequence
    unpack: Callable[..., Any] = pad_packed_sequence
    many_logits: bool | None = None


def use_operators(model: nn.Module, operators: Operators) -> None:
    """Let every module of ``model`` that asks for operators compute with these."""
    for module in model.modules():
        if isinstance(getattr(module, "operators", None), Operators):
            module.operators = operators  # type: ignore[assignment]
