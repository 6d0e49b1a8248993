"""Contrastive groups that span micro-batches and ranks: what every micro-batch contributes, found
before its pass.

The plan knows where every embedding of a step belongs, so all ranks write theirs into one table,
summed over the ranks, and each finds the gradient of the rows that are its own. The candidates are
the same at any world size.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mmscale.batch import Batch
from mmscale.data.planning.step_plan import PlannedStep
from mmscale.model.grad_cache import ContrastTerms, StepEmbeddings
from mmscale.parallel.ranks import Ranks
from mmscale.parallel.strategy import Strategy

# What says which embeddings are compared, and which belong together.
_COMPARED = ("group_T", "task_T", "side_T", "match_T")


def contrast_terms(
    strategy: Strategy, ranks: Ranks, step: PlannedStep, batches: list[Batch], group_sequences: int
) -> list[ContrastTerms | None]:
    """Terms of every micro-batch of this rank; None where groups are single sequences, which a pass
    holds whole.

    Costs one more forward pass of the step. Called on every rank of a step, or on none.
    """
    if group_sequences == 1 or not step.counts["contrastive"]:
        return [None] * len(batches)
    passes = [strategy.embeddings(batch) for batch in batches]
    table = _gather(ranks, step, batches, [embeddings["unit"] for embeddings in passes])
    log_scale, bias = passes[0]["log_scale"], passes[0]["bias"]

    mine = {number for batch in batches for number in batch.sequences}
    loss = torch.zeros((), device=log_scale.device)
    unit_grad = torch.zeros_like(table.unit_SE)
    scale_grad = torch.zeros_like(log_scale, dtype=torch.float32)
    bias_grad = torch.zeros_like(bias, dtype=torch.float32)
    for first in range(0, len(step.sequences), group_sequences):
        members = range(first, first + group_sequences)
        rows = slice(_before(step, first), _before(step, first + group_sequences))
        if not mine.intersection(members) or rows.start == rows.stop:
            continue
        group_loss, unit_grad[rows], of_scale, of_bias = table.gradients(rows, log_scale, bias)
        # One rank reports the group's loss, and teaches it to the scale and the bias.
        if first in mine:
            loss = loss + group_loss
            scale_grad = scale_grad + of_scale
            bias_grad = bias_grad + of_bias

    nothing = torch.zeros_like(loss), torch.zeros_like(scale_grad), torch.zeros_like(bias_grad)
    terms: list[ContrastTerms | None] = []
    for number, batch in enumerate(batches):
        here = (loss, scale_grad, bias_grad) if number == 0 else nothing
        terms.append(
            ContrastTerms(
                here[0], unit_grad[batch.objectives["contrastive"]["slot_T"]], here[1], here[2]
            )
        )
    return terms


def _before(step: PlannedStep, sequence: int) -> int:
    """Embeddings of the step before ``sequence``."""
    if sequence < len(step.sequences):
        return int(step.sequences[sequence].before["contrastive"])
    return int(step.counts["contrastive"])


def _gather(
    ranks: Ranks, step: PlannedStep, batches: list[Batch], units: list[Tensor]
) -> StepEmbeddings:
    blocks = [batch.objectives["contrastive"] for batch in batches]
    slots = torch.cat([block["slot_T"] for block in blocks])
    facts = torch.cat([torch.stack([block[name] for name in _COMPARED], dim=1) for block in blocks])
    weights = torch.cat([block["weight_T"] for block in blocks])
    numbers = torch.cat([torch.cat(units), weights[:, None]], dim=1)
    rows = int(step.counts["contrastive"])
    all_facts = facts.new_zeros(rows, facts.shape[1]).index_copy_(0, slots, facts)
    all_numbers = numbers.new_zeros(rows, numbers.shape[1]).index_copy_(0, slots, numbers)
    # No two ranks write the same row, so the sum is exact.
    dist.all_reduce(all_facts, group=ranks.data_group)
    dist.all_reduce(all_numbers, group=ranks.data_group)
    group, task, side, match = all_facts.unbind(1)
    return StepEmbeddings(
        unit_SE=all_numbers[:, :-1],
        group_S=group,
        task_S=task,
        side_S=side,
        match_S=match,
        weight_S=all_numbers[:, -1],
    )
