"""What data must know of an objective. Its loss is the model's half (`mmscale.model.objective`).

An objective is two files of one name: ``mmscale/data/objectives/NAME.py`` registers an `Objective`,
``mmscale/model/objectives/NAME.py`` its loss. Nothing else names it: the choices of a config, the
counts of a plan, the blocks of a batch and the names of losses come from the registry.

A batch holds one *block* for each objective: named arrays, such as the positions whose outputs are
taught and what they are taught. Only the two files of the objective know what is in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmscale.config import TaskConfig, is_media, media_kind
from mmscale.errors import UserError

if TYPE_CHECKING:
    from mmscale.data.loading.batch_builder import BatchBuilder
    from mmscale.data.loading.decoded_sample import DecodedSample

Counts = NDArray[Any]  # [n], a number for each sample


@dataclass(kw_only=True)
class TaskSizes:
    """What one task takes of some samples; arrays are [n].

    Where a sample lacks a field of the task, the numbers are not used.
    """

    segments: list[Counts]  # tokens of every segment it makes
    count: Counts  # what its loss is a mean over: tokens, embeddings, samples
    predictions: Counts  # positions that need logits over the vocabulary
    refused: NDArray[np.bool_] | None = None  # samples that cannot be taught; None: no sample


@dataclass(kw_only=True)
class TaskLayout:
    """One task of one sample, to be laid into the open sequence of a batch."""

    builder: BatchBuilder
    sample: DecodedSample
    task: TaskConfig
    number: int  # of the task, counted over all data sets
    prompt: NDArray[np.int64]  # token ids
    media: dict[str, int]  # by field: number of the sample's picture or clip in the builder
    count: float  # of the whole step, over all ranks: what the loss is a mean over
    group: int  # of neighbouring sequences, whose samples are compared with each other
    next_slot: Callable[[], int]  # place of one item more among those counted for the step
    part: range | None = None  # of the segment's positions, where it is cut; None: all

    def add_field(self, field: str) -> NDArray[np.int64] | None:
        """Add one field to the open segment; returns flat positions, int64 [n], if it is text."""
        if not is_media(field):
            return self.builder.add_text(self.sample.inputs[field])
        if media_kind(field) == "image":
            self.builder.add_image(self.media[field])
        else:
            self.builder.add_clip(self.media[field])
        return None


class Objective(ABC):
    """Data's half of an objective: its fields and checks, its sizes, its layout.

    Attributes:
        name: as in a config.
        takes_mixed_images: it can learn from a blend of two pictures (mixup, cutmix).
    """

    name: str
    takes_mixed_images = False

    def fields(self, task: TaskConfig) -> list[str]:
        """Every field the task reads, in order."""
        return [field for field in [*task.input, task.target] if field]

    def check(self, where: str, task: TaskConfig) -> None:
        """Raise `UserError` for a task that cannot be. ``where``: its key in the config."""
        if not task.target or is_media(task.target):
            raise UserError(
                f"{where}.target: a {self.name} task answers with a text field, such as text"
            )

    def can_split(self, task: TaskConfig) -> bool:
        """Whether the task's one segment may be cut into several, each of which `lay` can lay by
        `TaskLayout.part`.
        """
        return False

    def describe(self, task: TaskConfig) -> str:
        """What is learned, in a few words for people."""
        prompt = f" ({task.prompt})" if task.prompt else ""
        return f"{' + '.join(task.input) or 'nothing'} → {task.target}{prompt}"

    @abstractmethod
    def measure(
        self, task: TaskConfig, tokens: dict[str, NDArray[np.int64]], prompt: int
    ) -> TaskSizes:
        """What the task takes of some samples.

        Args:
            task: the task.
            tokens: of every field of the task, int64 [n]; below 0 where a sample lacks it.
            prompt: tokens of the task's prompt.
        """

    def check_sample(self, sample: DecodedSample, task: TaskConfig) -> None:
        """Raise `SampleFault` for what only the decoded sample shows."""
        return

    @abstractmethod
    def lay(self, layout: TaskLayout) -> None:
        """Lay the task's segments, and add what they are taught to the batch's block."""

    @abstractmethod
    def block(self, items: list[Any]) -> dict[str, NDArray[Any]]:
        """The block of a batch from the items that `BatchBuilder.add` was given; may be empty.

        Names end in the shape, as in `mmscale.batch`; flat positions are ``at_…``, int64.
        """

    @abstractmethod
    def lay_dry(self, builder: BatchBuilder, at: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
        """Add to a batch without data what a typical segment of this objective is taught.

        ``at``, int64 [n]: flat positions of the segment's text; ``ids``, int64 [n]: what follows
        each. For `mmscale.capacity`, which wants memory and arithmetic of the right size.
        """


def column(items: list[Any], number: int, dtype: type) -> NDArray[Any]:
    """One element of every item as an array [items]."""
    return np.array([item[number] for item in items], dtype=dtype)


def joined(parts: list[NDArray[Any]], dtype: type) -> NDArray[Any]:
    """The arrays behind each other; empty of none."""
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)


def padded(rows: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """int64 [rows, longest], zeros behind the shorter ones."""
    out = np.zeros((len(rows), max((len(row) for row in rows), default=0)), np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return out
