"""Next token: weighted cross-entropy over the vocabulary.

Shape suffixes: T positions, V vocabulary, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmscale.batch import ObjectiveBlock
from mmscale.model.objective import Loss, LossInputs, rows_at_once
from mmscale.registry import LOSSES


class NextTokenLoss(Loss):
    """The block: see `mmscale.data.objectives.next_token`. Its logits are those of the tied
    embedding table, so it has no weights of its own.
    """

    order = 0

    def loss(
        self, model: nn.Module, inputs: LossInputs, block: ObjectiveBlock, head: Any
    ) -> Tensor:
        """See `Loss`."""
        mine = inputs.positions.every
        return next_token_loss(
            inputs.words_TD[block["at_T"][mine]],
            inputs.table_VD,
            block["token_T"][mine],
            block["weight_T"][mine],
            smoothing=inputs.smoothing,
            many_logits=inputs.many_logits,
        )

    def outputs(self, model: nn.Module, inputs: LossInputs, block: ObjectiveBlock) -> Tensor:
        """Logits, float32 [T, V]."""
        return (inputs.words_TD[block["at_T"]] @ inputs.table_VD.T).float()


def next_token_loss(
    hidden_TD: Tensor,
    embedding_VD: Tensor,
    target_T: Tensor,
    weight_T: Tensor,
    smoothing: float = 0.0,
    many_logits: bool | None = None,
) -> Tensor:
    """Weighted sum of cross-entropies, float32 scalar, of logits ``hidden @ embedding.T``.

    Only supervised positions are passed in. Logits exist for a chunk of them at a time, forward and
    backward: their gradient is found together with the loss (as in Liger Kernel; Hsu et al., 2024),
    and only its products with the weights and the inputs are kept. ``smoothing`` spreads so much of
    each target over the vocabulary (Szegedy et al., 2016). ``many_logits``: see `rows_at_once`.
    """
    return _ChunkedCrossEntropy.apply(
        hidden_TD, embedding_VD, target_T, weight_T, smoothing, many_logits
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        embedding_VD: Tensor,
        target_T: Tensor,
        weight_T: Tensor,
        smoothing: float,
        many_logits: bool | None,
    ) -> Tensor:
        total = hidden_TD.new_zeros((), dtype=torch.float32)
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        hidden_grad = torch.empty_like(hidden_TD) if wanted else None
        embedding_grad = torch.zeros_like(embedding_VD, dtype=torch.float32) if wanted else None
        vocabulary = len(embedding_VD)
        at_once = rows_at_once(hidden_TD, vocabulary, many_logits)
        for start in range(0, len(target_T), at_once):
            rows = slice(start, start + at_once)
            true, weight = target_T[rows, None], weight_T[rows, None]
            # In one memory: logits less the largest, their exponentials, and the gradient of the
            # loss by them.
            logits = (hidden_TD[rows] @ embedding_VD.T).float()
            logits -= logits.amax(-1, keepdim=True)
            likely = (1.0 - smoothing) * logits.gather(1, true)
            if smoothing:
                likely += smoothing * logits.mean(-1, keepdim=True)
            total_exp = logits.exp_().sum(-1, keepdim=True)
            total += ((total_exp.log() - likely) * weight).sum()
            if hidden_grad is None or embedding_grad is None:
                continue
            # Softmax less the target distribution, by weight.
            grad = logits.mul_(weight / total_exp)
            if smoothing:
                grad -= weight * (smoothing / vocabulary)
            low = grad.scatter_add_(1, true, weight * (smoothing - 1.0)).to(hidden_TD.dtype)
            torch.mm(low, embedding_VD, out=hidden_grad[rows])
            embedding_grad += low.T @ hidden_TD[rows]
        ctx.save_for_backward(hidden_grad, embedding_grad)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        hidden_grad, embedding_grad = ctx.saved_tensors
        return (
            (hidden_grad * grads[0]).to(hidden_grad.dtype),
            embedding_grad * grads[0],
            None,
            None,
            None,
            None,
        )


LOSSES.register("next_token", NextTokenLoss())
