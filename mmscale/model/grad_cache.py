"""The contrastive objective over groups that no single forward pass holds.

GradCache (Gao et al., 2021): embed everything without gradients, find the loss and its gradient
with regard to the embeddings, then run each micro-batch again with that gradient. Dropout is keyed,
so both passes are the same function, and the result is the gradient of the whole group, not an
approximation.

Shape suffixes: S embeddings of the step, T of a micro-batch, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmscale.model.objectives.contrastive import contrastive_loss


@dataclass
class ContrastTerms:
    """What a micro-batch contributes to a contrastive loss that was found beforehand; everything
    float32.
    """

    loss: Tensor  # scalar, the part of the step's loss that is reported here
    unit_grad_TE: Tensor  # gradient with regard to the micro-batch's embeddings
    log_scale_grad: Tensor  # [1], likewise; zero but for one micro-batch of the step
    bias_grad: Tensor  # [1]

    def surrogate(self, unit_TE: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        """A scalar with the value of `loss` and these gradients."""
        linear = (
            (unit_TE * self.unit_grad_TE).sum()
            + (log_scale.float() * self.log_scale_grad).sum()
            + (bias.float() * self.bias_grad).sum()
        )
        return self.loss + linear - linear.detach()


@dataclass(kw_only=True)
class StepEmbeddings:
    """Every embedding of a step with what says which belong together; rows of broken samples have
    no weight.
    """

    unit_SE: Tensor  # float32, unit length
    group_S: Tensor  # int64, as are the next three; see `Batch`
    task_S: Tensor
    side_S: Tensor
    match_S: Tensor
    weight_S: Tensor  # float32; 0: no embedding

    def gradients(
        self, rows: slice, log_scale: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the group in ``rows``: (loss, gradient of its embeddings, of the scale [1], of the
        bias [1]).
        """
        with torch.enable_grad():
            unit = self.unit_SE[rows].detach().requires_grad_()
            scale = log_scale.detach().float().requires_grad_()
            shift = bias.detach().float().requires_grad_()
            real = self.weight_S[rows] > 0
            loss = contrastive_loss(
                unit,
                scale,
                shift,
                # A row without an embedding is nobody's candidate.
                group_T=torch.where(
                    real, self.group_S[rows], -1 - torch.arange(len(real), device=real.device)
                ),
                task_T=self.task_S[rows],
                side_T=self.side_S[rows],
                match_T=self.match_S[rows],
                weight_T=self.weight_S[rows],
            )
            unit_grad, scale_grad, shift_grad = torch.autograd.grad(loss, (unit, scale, shift))
        return loss.detach(), unit_grad, scale_grad, shift_grad
