"""Contrastive: fields of one sample are to have like embeddings (retrieval).

One segment for each field:  field · <|embed|>          (pooled at <|embed|>)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmscale import prf
from mmscale.config import BY_KEY, TaskConfig
from mmscale.data.objective import Objective, TaskLayout, TaskSizes, column
from mmscale.data.special_tokens import EMBED
from mmscale.errors import UserError
from mmscale.registry import OBJECTIVES

if TYPE_CHECKING:
    from mmscale.data.loading.batch_builder import BatchBuilder
    from mmscale.data.loading.decoded_sample import DecodedSample

NAME = "contrastive"


class Contrastive(Objective):
    """The block, a row for each embedding, int64 but for the weight:

    - ``at_T``: flat position of its <|embed|> token;
    - ``slot_T``: its place among the embeddings planned for the step, over all ranks;
    - ``group_T``: embeddings of one group and task are each other's candidates;
    - ``task_T``: number of the task, unique over data sets;
    - ``side_T``: which of the task's fields was embedded;
    - ``match_T``: equal values belong together;
    - ``weight_T``: float32, task weight over the step's number of embeddings; masked: 0.
    """

    name = NAME

    def fields(self, task: TaskConfig) -> list[str]:
        """See `Objective`."""
        return [field for field in [*task.between, task.match] if field and field != BY_KEY]

    def check(self, where: str, task: TaskConfig) -> None:
        """See `Objective`."""
        if len(task.between) < 2:
            raise UserError(f"{where}.between: a contrastive task needs at least two fields")

    def describe(self, task: TaskConfig) -> str:
        """See `Objective`."""
        return f"{' ↔ '.join(task.between)} by {task.match or 'sample'}"

    def measure(
        self, task: TaskConfig, tokens: dict[str, NDArray[np.int64]], prompt: int
    ) -> TaskSizes:
        """See `Objective`."""
        segments = [tokens[field] + 1 for field in task.between]
        zero = np.zeros_like(segments[0])
        return TaskSizes(segments=segments, count=zero + len(segments), predictions=zero)

    def lay(self, layout: TaskLayout) -> None:
        """See `Objective`."""
        task = layout.task
        match = prf.derive_key("match", _matched(layout.sample, task)) >> 1
        for side, field in enumerate(task.between):
            layout.builder.open_segment()
            layout.add_field(field)
            (at,) = layout.builder.add_text([EMBED])
            add_embedding(
                layout.builder, int(at), slot=layout.next_slot(), group=layout.group,
                task=layout.number, side=side, match=match, weight=task.weight / layout.count,
            )  # fmt: skip

    def block(self, items: list[Any]) -> dict[str, NDArray[Any]]:
        """See `Objective`."""
        names = ("at_T", "slot_T", "group_T", "task_T", "side_T", "match_T")
        numbers = {name: column(items, place, np.int64) for place, name in enumerate(names)}
        return {**numbers, "weight_T": column(items, len(names), np.float32)}

    def lay_dry(self, builder: BatchBuilder, at: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
        """See `Objective`."""
        (embed,) = builder.add_text([EMBED])
        add_embedding(
            builder, int(embed), slot=0, group=builder.sequence, task=0, side=0, match=0, weight=1.0
        )


def _matched(sample: DecodedSample, task: TaskConfig) -> int | str:
    """What a sample shares with those that it belongs with: by default its number in the set, which
    no other sample has. Samples of different shards may well have equal keys.
    """
    if not task.match:
        return sample.sample
    return sample.key if task.match == BY_KEY else sample.raw[task.match]


def add_embedding(
    builder: BatchBuilder,
    at: int,
    *,
    slot: int,
    group: int,
    task: int,
    side: int,
    match: int,
    weight: float,
) -> None:
    """The output at flat position ``at`` is an embedding; see `Contrastive` for the rest."""
    builder.add(NAME, (at, slot, group, task, side, match, weight))


OBJECTIVES.register(NAME, Contrastive())
