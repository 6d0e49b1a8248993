"""CTC: connectionist temporal classification of a clip's audio tokens (Graves et al., 2006).

Shape suffixes: C clips, P audio tokens of the longest, V vocabulary, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmscale.batch import ObjectiveBlock
from mmscale.model.objective import Loss, LossInputs, rows_at_once
from mmscale.registry import LOSSES

BLANK = 0  # CTC's blank is the row of <|pad|>, which is never a target


class CtcLoss(Loss):
    """The block: see `mmscale.data.objectives.ctc`. Its logits are those of the tied embedding
    table, so it has no weights of its own.
    """

    order = 2

    def loss(
        self, model: nn.Module, inputs: LossInputs, block: ObjectiveBlock, head: Any
    ) -> Tensor:
        """See `Loss`."""
        loss = ctc_loss(inputs.words_TD, inputs.table_VD, many_logits=inputs.many_logits, **block)
        return inputs.positions.part * loss

    def outputs(
        self, model: nn.Module, inputs: LossInputs, block: ObjectiveBlock
    ) -> tuple[Tensor, Tensor]:
        """(log-probabilities float32 [C, P, V], blank is token 0; int64 [C], how many of the P are
        real).
        """
        log_probs = ctc_log_probs(inputs.words_TD, inputs.table_VD, block["at_CP"])
        return log_probs, block["tokens_C"]


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
    many_logits: bool | None = None,
) -> Tensor:
    """Weighted sum of connectionist temporal classification losses (Graves et al., 2006), float32
    scalar.

    Logits exist for a few clips at a time and are made again for the backward pass.
    """
    total = hidden_TD.new_zeros((), dtype=torch.float32)
    clips, longest = at_CP.shape
    at_once = rows_at_once(hidden_TD, longest * len(embedding_VD), many_logits)

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


LOSSES.register("ctc", CtcLoss())
