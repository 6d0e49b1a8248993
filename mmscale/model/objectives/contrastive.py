"""Contrastive: pairwise sigmoid loss over unit-length embeddings (SigLIP: Zhai et al., 2023).

Shape suffixes: T embeddings, E embedding width, D model width.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmscale.batch import ObjectiveBlock
from mmscale.config import ModelConfig
from mmscale.model.objective import Loss, LossInputs
from mmscale.registry import LOSSES


class ContrastiveLoss(Loss):
    """The block: see `mmscale.data.objectives.contrastive`."""

    order = 1
    width_rules: ClassVar[dict[str, str]] = {
        "embed_head.": "output",
        "contrast_log_scale": "input",
        "contrast_bias": "input",
    }
    constants: ClassVar[dict[str, float]] = {
        "contrast_log_scale": math.log(10.0),
        "contrast_bias": -3.0,  # about the log-odds of a match among twenty candidates
    }

    def weights(self, config: ModelConfig) -> dict[str, nn.Module | nn.Parameter]:
        """See `Loss`."""
        return {
            "embed_head": nn.Linear(config.width, config.embed_dim, bias=False),
            # One element each, not scalars: a sharded parameter needs an axis.
            "contrast_log_scale": nn.Parameter(torch.empty(1)),
            "contrast_bias": nn.Parameter(torch.empty(1)),
        }

    def flops(self, config: ModelConfig) -> float:
        """See `Loss`."""
        return 2.0 * config.width * config.embed_dim

    def head(self, model: Any, inputs: LossInputs, block: ObjectiveBlock) -> Tensor:
        """See `Loss`."""
        return self.outputs(model, inputs, block)

    def loss(self, model: Any, inputs: LossInputs, block: ObjectiveBlock, head: Any) -> Tensor:
        """See `Loss`."""
        unit_TE: Tensor = head
        scale, bias = model.contrast_log_scale, model.contrast_bias
        if inputs.contrast is not None:
            return inputs.contrast.surrogate(unit_TE, scale, bias) * inputs.positions.part
        names = ("group_T", "task_T", "side_T", "match_T", "weight_T")
        facts = {name: block[name] for name in names}
        return contrastive_loss(unit_TE, scale, bias, **facts) * inputs.positions.part

    def outputs(self, model: Any, inputs: LossInputs, block: ObjectiveBlock) -> Tensor:
        """Unit-length embeddings, float32 [T, E]."""
        return F.normalize(model.embed_head(inputs.hidden_TD[block["at_T"]]).float(), dim=-1)


def contrastive_loss(
    unit_TE: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    *,
    group_T: Tensor,
    task_T: Tensor,
    side_T: Tensor,
    match_T: Tensor,
    weight_T: Tensor,
) -> Tensor:
    """Pairwise sigmoid loss (SigLIP: Zhai et al., 2023), float32 scalar.

    The unit-length embeddings of one task in one group are each other's candidates: every pair of
    different sides is a positive if it matches and a negative otherwise.
    """
    logits = unit_TE @ unit_TE.T * log_scale.float().exp() + bias.float()
    together = (
        (group_T[:, None] == group_T) & (task_T[:, None] == task_T) & (side_T[:, None] < side_T)
    )
    sign = torch.where(match_T[:, None] == match_T, 1.0, -1.0)
    losses = -F.logsigmoid(sign * logits)
    return (losses * together * weight_T[:, None]).sum()


LOSSES.register("contrastive", ContrastiveLoss())
