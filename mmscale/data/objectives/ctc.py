"""CTC: the audio tokens of a clip spell its transcript (Graves et al., 2006).

One segment:  clip          (its tokens spell the target)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmscale.config import TaskConfig
from mmscale.data.objective import Objective, TaskLayout, TaskSizes, column, padded
from mmscale.errors import SampleFault, UserError
from mmscale.registry import OBJECTIVES

if TYPE_CHECKING:
    from mmscale.data.loading.batch_builder import BatchBuilder
    from mmscale.data.loading.decoded_sample import DecodedSample

NAME = "ctc"


class Ctc(Objective):
    """The block, C clips, P audio tokens of the longest, U tokens of the longest transcript:

    - ``at_CP`` int64: flat positions of a clip's audio tokens; 0 beyond its end;
    - ``tokens_C`` int64: audio tokens of the clip;
    - ``target_CU`` int64: token ids of the transcript; 0 beyond its end;
    - ``length_C`` int64: tokens of the transcript;
    - ``weight_C`` float32: task weight over the step's number of transcript tokens.
    """

    name = NAME

    def check(self, where: str, task: TaskConfig) -> None:
        """See `Objective`."""
        super().check(where, task)
        if [field.partition(".")[0] for field in task.input] != ["audio"]:
            raise UserError(f"{where}.input: a ctc task reads one clip; use [audio]")

    def measure(
        self, task: TaskConfig, tokens: dict[str, NDArray[np.int64]], prompt: int
    ) -> TaskSizes:
        """See `Objective`."""
        clip, target = tokens[task.input[0]], tokens[task.target]
        return TaskSizes(segments=[clip], count=target, predictions=clip, refused=clip < target)

    def check_sample(self, sample: DecodedSample, task: TaskConfig) -> None:
        """See `Objective`."""
        ids = sample.texts[task.target]
        # CTC puts a blank between equal neighbours.
        needed = len(ids) + int((ids[1:] == ids[:-1]).sum())
        if sample.clip_tokens(task.input[0]) < needed:
            raise SampleFault("too long for its clip to be spelled by CTC")

    def lay(self, layout: TaskLayout) -> None:
        """See `Objective`."""
        task = layout.task
        layout.builder.open_segment()
        at = layout.builder.add_clip(layout.media[task.input[0]])
        ids = layout.sample.texts[task.target]
        add_transcript(layout.builder, at, ids, task.weight / max(1, layout.count))

    def block(self, items: list[Any]) -> dict[str, NDArray[Any]]:
        """See `Objective`."""
        return {
            "at_CP": padded([at for at, _, _ in items]),
            "tokens_C": np.array([len(at) for at, _, _ in items], np.int64),
            "target_CU": padded([ids for _, ids, _ in items]),
            "length_C": np.array([len(ids) for _, ids, _ in items], np.int64),
            "weight_C": column(items, 2, np.float32),
        }

    def lay_dry(self, builder: BatchBuilder, at: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
        """See `Objective`. Nothing: the logits of a clip's tokens are fewer than those of the text
        beside it, and no more of either exist at once than of the other.
        """


def add_transcript(
    builder: BatchBuilder, at: NDArray[np.int64], ids: NDArray[np.int64], weight: float
) -> None:
    """The outputs at flat positions ``at`` are to spell the tokens ``ids``."""
    builder.add(NAME, (at, ids, weight))


OBJECTIVES.register(NAME, Ctc())
