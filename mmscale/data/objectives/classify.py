"""Classification by a linear head.

One segment:  input fields · prompt · <|answer|>          (the head reads <|answer|>)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmscale.config import TaskConfig
from mmscale.config.keys import check_head
from mmscale.data.objective import Objective, TaskLayout, TaskSizes, column
from mmscale.data.special_tokens import ANSWER
from mmscale.errors import SampleFault, UserError
from mmscale.registry import OBJECTIVES

if TYPE_CHECKING:
    from mmscale.data.loading.batch_builder import BatchBuilder
    from mmscale.data.loading.decoded_sample import DecodedSample

NAME = "classify"


class Classify(Objective):
    """The block, a row for each classified sample:

    - ``at_T`` int64: flat position of the <|answer|> token that the head reads;
    - ``head_T`` int64: number of the head;
    - ``class_T2`` int64: class of the sample, and of the one mixed into it (equal if none was);
    - ``share_T`` float32: share of the first of the two classes;
    - ``weight_T`` float32: task weight over the step's number of classified samples.
    """

    name = NAME
    takes_mixed_images = True  # a blend has two classes, which a head can be taught

    def check(self, where: str, task: TaskConfig) -> None:
        """See `Objective`."""
        super().check(where, task)
        if not task.input:
            raise UserError(
                f"{where}.input: empty; name the fields that are classified, such as [image]"
            )
        check_head(f"{where}.head", task.head_name())

    def measure(
        self, task: TaskConfig, tokens: dict[str, NDArray[np.int64]], prompt: int
    ) -> TaskSizes:
        """See `Objective`."""
        zero = np.zeros_like(tokens[task.target])
        segment = sum((tokens[field] for field in task.input), zero + 1 + prompt)
        return TaskSizes(segments=[segment], count=zero + 1, predictions=zero)

    def check_sample(self, sample: DecodedSample, task: TaskConfig) -> None:
        """See `Objective`."""
        if not sample.has_class(task):
            raise SampleFault(f"its class is not among model.classes.{task.head_name()}")

    def lay(self, layout: TaskLayout) -> None:
        """See `Objective`."""
        task, sample = layout.task, layout.sample
        layout.builder.open_segment()
        for field in task.input:
            layout.add_field(field)
        at = layout.builder.add_text(np.concatenate([layout.prompt, [ANSWER]]))
        first = sample.class_of(task)
        second = sample.partner.class_of(task) if sample.partner else first
        add_class(
            layout.builder, int(at[-1]), head=sample.head_of(task), classes=(first, second),
            share=sample.share, weight=task.weight / layout.count,
        )  # fmt: skip

    def block(self, items: list[Any]) -> dict[str, NDArray[Any]]:
        """See `Objective`."""
        return {
            "at_T": column(items, 0, np.int64),
            "head_T": column(items, 1, np.int64),
            "class_T2": column(items, 2, np.int64).reshape(-1, 2),
            "share_T": column(items, 3, np.float32),
            "weight_T": column(items, 4, np.float32),
        }

    def lay_dry(self, builder: BatchBuilder, at: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
        """See `Objective`. Nothing: a head's logits are a few numbers a sample."""


def add_class(
    builder: BatchBuilder,
    at: int,
    *,
    head: int,
    classes: tuple[int, int],
    share: float,
    weight: float,
) -> None:
    """The output at flat position ``at`` is classified by a head; see `Classify` for the rest."""
    builder.add(NAME, (at, head, classes, share, weight))


OBJECTIVES.register(NAME, Classify())
