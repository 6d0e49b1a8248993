"""Next token: captioning, transcription, answering with a label's text, plain text.

One segment:  input fields · prompt · <|answer|> · target          (predicts … <|end|>)
A target alone may be cut into segments; each predicts the tokens that follow its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmscale.config import TaskConfig, is_media
from mmscale.data.objective import Objective, TaskLayout, TaskSizes, joined
from mmscale.data.special_tokens import ANSWER, END
from mmscale.registry import OBJECTIVES

if TYPE_CHECKING:
    from mmscale.data.loading.batch_builder import BatchBuilder

NAME = "next_token"


class NextToken(Objective):
    """The block: ``at_T`` int64, flat position whose output predicts ``token_T`` int64, with
    ``weight_T`` float32, the task's weight over the step's total of target weight; masked: 0.
    """

    name = NAME

    def can_split(self, task: TaskConfig) -> bool:
        """See `Objective`."""
        return not task.input and not task.prompt

    def measure(
        self, task: TaskConfig, tokens: dict[str, NDArray[np.int64]], prompt: int
    ) -> TaskSizes:
        """See `Objective`."""
        target = tokens[task.target]
        # Each text of the input predicts its own tokens but the first.
        texts = [tokens[field] for field in task.input if not is_media(field)]
        zero = np.zeros_like(target)
        inner = sum((np.maximum(text - 1, 0) for text in texts), zero)
        return TaskSizes(
            segments=[sum((tokens[field] for field in task.input), target + (1 + prompt))],
            count=target + 1 + task.input_weight * inner,
            predictions=target + 1 + (inner if task.input_weight else zero),
        )

    def lay(self, layout: TaskLayout) -> None:
        """See `Objective`."""
        task, texts, builder = layout.task, layout.sample.texts, layout.builder
        builder.open_segment()
        for field in task.input:
            at = layout.add_field(field)
            if at is not None and task.input_weight and len(at) > 1:
                weight = task.weight * task.input_weight / layout.count
                add_targets(builder, at[:-1], texts[field][1:], weight)
        builder.add_text(layout.prompt)
        answer = texts[task.target]
        seen, learned = np.concatenate([[ANSWER], answer]), np.concatenate([answer, [END]])
        if layout.part is not None:  # begins with the token before the first that it learns
            seen, learned = (row[layout.part.start : layout.part.stop] for row in (seen, learned))
        at = builder.add_text(seen)
        add_targets(builder, at, learned, task.weight / layout.count)

    def block(self, items: list[Any]) -> dict[str, NDArray[Any]]:
        """See `Objective`."""
        return {
            "at_T": joined([at for at, _, _ in items], np.int64),
            "token_T": joined([ids for _, ids, _ in items], np.int64),
            "weight_T": joined([weights for _, _, weights in items], np.float32),
        }

    def lay_dry(self, builder: BatchBuilder, at: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
        """See `Objective`."""
        add_targets(builder, at, ids, 1.0)


def add_targets(
    builder: BatchBuilder,
    at: NDArray[np.int64],
    ids: NDArray[np.int64],
    weights: NDArray[np.float32] | float,
) -> None:
    """The output at flat position ``at[i]`` is to predict token ``ids[i]`` with a weight."""
    builder.add(NAME, (at, ids, np.broadcast_to(np.float32(weights), at.shape)))


OBJECTIVES.register(NAME, NextToken())
