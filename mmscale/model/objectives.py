"""What is learned. Each objective returns a sum that is already divided by the whole step's count,
so that the sums of all micro-batches of all ranks add up to the step's loss.

Shape suffixes: T positions, V vocabulary, D model width, E embedding width, C clips, P audio tokens
    of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLANK = 0  # CTC's blank is the row of <|pad|>, which is never a target
_LOGIT_ELEMENTS = 1 << 25  # float32 logits that exist at once
LARGER_ON_GPU = 4  # times as many there: products of few rows leave most of it idle


def _at_once(hidden_TD: Tensor, logits: int) -> int:
    """How many rows, of so many logits each, are computed at once."""
    allowed = _LOGIT_ELEMENTS * (LARGER_ON_GPU if hidden_TD.device.type == "cuda" else 1)
    return max(1, allowed // max(1, logits))


def next_token_loss(
    hidden_TD: Tensor,
    embedding_VD: Tensor,
    target_T: Tensor,
    weight_T: Tensor,
    smoothing: float = 0.0,
) -> Tensor:
    """Weighted sum of cross-entropies, float32 scalar, of logits ``hidden @ embedding.T``.

    Only supervised positions are passed in. Logits exist for a chunk of them at a time, forward and
    backward: their gradient is found together with the loss (as in Liger Kernel; Hsu et al., 2024),
    and only its products with the weights and the inputs are kept. ``smoothing`` spreads so much of
    each target over the vocabulary (Szegedy et al., 2016).
    """
    return _ChunkedCrossEntropy.apply(hidden_TD, embedding_VD, target_T, weight_T, smoothing)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        embedding_VD: Tensor,
        target_T: Tensor,
        weight_T: Tensor,
        smoothing: float,
    ) -> Tensor:
        total = hidden_TD.new_zeros((), dtype=torch.float32)
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        hidden_grad = torch.empty_like(hidden_TD) if wanted else None
        embedding_grad = torch.zeros_like(embedding_VD, dtype=torch.float32) if wanted else None
        vocabulary = len(embedding_VD)
        at_once = _at_once(hidden_TD, vocabulary)
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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_grad, embedding_grad = ctx.saved_tensors
        return (
            (hidden_grad * grads[0]).to(hidden_grad.dtype),
            embedding_grad * grads[0],
            None,
            None,
            None,
        )


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


def ctc_log_probs(hidden_TD: Tensor, embedding_VD: Tensor, at_CP: Tensor) -> Tensor:
    """Log-probabilities of every token, blank included, at each clip's audio tokens: float32 [C, P,
    V].
    """
    return (hidden_TD[at_CP] @ embedding_VD.T).float().log_softmax(-1)


def ctc_loss(
    hidden_TD: Tensor,
    embedding_VD: Tensor,
    *,
    at_CP: Tensor,
    tokens_C: Tensor,
    target_CU: Tensor,
    length_C: Tensor,
    weight_C: Tensor,
) -> Tensor:
    """Weighted sum of connectionist temporal classification losses (Graves et al., 2006), float32
    scalar.

    Logits exist for a few clips at a time and are made again for the backward pass.
    """
    total = hidden_TD.new_zeros((), dtype=torch.float32)
    clips, longest = at_CP.shape
    at_once = _at_once(hidden_TD, longest * len(embedding_VD))

    def some(hidden: Tensor, embedding: Tensor, rows: slice) -> Tensor:
        log_probs_PCV = ctc_log_probs(hidden, embedding, at_CP[rows]).transpose(0, 1)
        losses = F.ctc_loss(
            log_probs_PCV,
            target_CU[rows],
            tokens_C[rows],
            length_C[rows],
            blank=BLANK,
            reduction="none",
        )
        return (losses * weight_C[rows]).sum()

    for start in range(0, clips, at_once):
        rows = slice(start, start + at_once)
        total = total + checkpoint(some, hidden_TD, embedding_VD, rows, use_reentrant=False)
    return total


def classification_loss(
    logits: Sequence[Tensor],
    *,
    head_T: Tensor,
    class_T2: Tensor,
    share_T: Tensor,
    weight_T: Tensor,
    smoothing: float,
) -> Tensor:
    """Weighted sum of cross-entropies, float32 scalar; ``logits`` are each head's, [T, classes],
    for every position.

    A position counts for its own head alone. Its target is ``share`` of the first of two classes
    and the rest of the second.
    """
    total = weight_T.new_zeros(())
    for number, of_head in enumerate(logits):
        own = (head_T == number) * weight_T
        log_probs = of_head.float().log_softmax(-1)
        class_T2_ = class_T2.clamp(max=of_head.shape[1] - 1)  # those of other heads have no weight
        first, second = log_probs.gather(1, class_T2_).unbind(1)
        likely = (1.0 - smoothing) * (
            share_T * first + (1.0 - share_T) * second
        ) + smoothing * log_probs.mean(-1)
        total = total - (likely * own).sum()
    return total
