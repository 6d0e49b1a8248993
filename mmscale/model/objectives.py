"""What is learned. Each objective returns a sum that is already divided by the whole step's count, so that the
sums of all micro-batches of all ranks add up to the step's loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 4096  # positions whose logits exist at once


def next_token_loss(hidden_TD: Tensor, embedding_VD: Tensor, target_T: Tensor, weight_T: Tensor) -> Tensor:
    """Weighted sum of cross-entropies, float32 scalar, of logits ``hidden @ embedding.T``.

    Only supervised positions are passed in, and logits are made for a chunk of them at a time.
    """
    total = hidden_TD.new_zeros((), dtype=torch.float32)
    for start in range(0, max(1, len(target_T)), _CHUNK):
        rows = slice(start, start + _CHUNK)
        logits = (hidden_TD[rows] @ embedding_VD.T).float()
        total = total + (F.cross_entropy(logits, target_T[rows], reduction="none") * weight_T[rows]).sum()
    return total


def contrastive_loss(
    embedding_TE: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    *,
    sequence_T: Tensor,
    task_T: Tensor,
    side_T: Tensor,
    match_T: Tensor,
    weight_T: Tensor,
) -> Tensor:
    """Pairwise sigmoid loss (SigLIP: Zhai et al., 2023), float32 scalar.

    The embeddings of one task in one packed sequence are each other's candidates: every pair of different
    sides is a positive if it matches and a negative otherwise. A sequence is never split over ranks, so the
    negatives do not depend on the world size.
    """
    x = F.normalize(embedding_TE.float(), dim=-1)
    logits = x @ x.T * log_scale.float().exp() + bias.float()
    together = (sequence_T[:, None] == sequence_T) & (task_T[:, None] == task_T) & (side_T[:, None] < side_T)
    sign = torch.where(match_T[:, None] == match_T, 1.0, -1.0)
    losses = -F.logsigmoid(sign * logits)
    return (losses * together * weight_T[:, None]).sum()
