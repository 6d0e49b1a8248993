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
from mmscale.model.contrast import ContrastTerms, StepEmbeddings
from mmscale.parallel.ranks import Ranks
from mmscale.parallel.strategy import Strategy


def contrast_terms(
    strategy: Strategy, ranks: Ranks, step: PlannedStep, batches: list[Batch], group_sequences: int
) -> list[ContrastTerms | None]:
    """Terms of every micro-batch of this rank; None where groups are single sequences, which a pass
    holds whole.

    Costs one more forward pass of the step. Called on every rank of a step, or on none.
    """
    if group_sequences == 1 or not step.embeddings:
        return [None] * len(batches)
    passes = [strategy.embeddings(batch) for batch in batches]
    table = _gather(ranks, step, batches, [found["unit"] for found in passes])
    log_scale, bias = passes[0]["log_scale"], passes[0]["bias"]

    mine = {number for batch in batches for number in batch.sequences}
    loss = torch.zeros((), device=log_scale.device)
    unit_grad = torch.zeros_like(table.unit_SE)
    scale_grad, bias_grad = (
        torch.zeros_like(log_scale, dtype=torch.float32),
        torch.zeros_like(bias, dtype=torch.float32),
    )
    for first in range(0, len(step.sequences), group_sequences):
        members = range(first, first + group_sequences)
        rows = slice(step.sequences[first].first_embedding, _end(step, first + group_sequences))
        if not mine.intersection(members) or rows.start == rows.stop:
            continue
        group_loss, unit_grad[rows], of_scale, of_bias = table.gradients(rows, log_scale, bias)
        if first in mine:  # told, and taught to the scale and the bias, by one rank
            loss, scale_grad, bias_grad = (
                loss + group_loss,
                scale_grad + of_scale,
                bias_grad + of_bias,
            )

    nothing = torch.zeros_like(loss), torch.zeros_like(scale_grad), torch.zeros_like(bias_grad)
    terms: list[ContrastTerms | None] = []
    for number, batch in enumerate(batches):
        here = (loss, scale_grad, bias_grad) if number == 0 else nothing
        terms.append(ContrastTerms(here[0], unit_grad[batch.embed_slot_T], here[1], here[2]))
    return terms


def _end(step: PlannedStep, sequence: int) -> int:
    """Embeddings of the step before ``sequence``."""
    return (
        step.sequences[sequence].first_embedding
        if sequence < len(step.sequences)
        else step.embeddings
    )


def _gather(
    ranks: Ranks, step: PlannedStep, batches: list[Batch], units: list[Tensor]
) -> StepEmbeddings:
    slots = torch.cat([batch.embed_slot_T for batch in batches])
    facts = torch.cat(
        [
            torch.stack(
                [batch.embed_group_T, batch.embed_task_T, batch.embed_side_T, batch.embed_match_T],
                dim=1,
            )
            for batch in batches
        ]
    )
    numbers = torch.cat(
        [torch.cat(units), torch.cat([batch.embed_weight_T for batch in batches])[:, None]], dim=1
    )
    all_facts = facts.new_zeros(step.embeddings, facts.shape[1]).index_copy_(0, slots, facts)
    all_numbers = numbers.new_zeros(step.embeddings, numbers.shape[1]).index_copy_(
        0, slots, numbers
    )
    # No two ranks write the same row, so the sum is exact.
    dist.all_reduce(all_facts, group=ranks.data_group)
    dist.all_reduce(all_numbers, group=ranks.data_group)
    group, task, side, match = all_facts.unbind(1)
    return StepEmbeddings(all_numbers[:, :-1], group, task, side, match, all_numbers[:, -1])
