"""From a sample's tasks to its segments: how long they are, known from the index.

What a task makes of a sample is its objective's to say (`mmscale.data.objective`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmscale.config import MediaConfig, SetConfig, TaskConfig, is_media, media_kind
from mmscale.data.index.dataset import Dataset
from mmscale.data.planning.array_cache import CachedArray
from mmscale.data.planning.token_counts import ABSENT
from mmscale.data.tokenizer import Tokenizer
from mmscale.registry import OBJECTIVES

_OF_ALL_OBJECTIVES = ("tokens", "predictions", "squares", "image_tokens", "audio_tokens")


@dataclass(kw_only=True)
class SampleSizes:
    """What planning needs of some samples, or of the parts of those that are cut; arrays are [n].

    Without ``long: split`` there is one part of each sample.
    """

    rows: NDArray[np.int64]  # position, among the samples asked for, of the part's sample
    parts: NDArray[np.int64]  # which part of its sample
    # Of all segments; 0: not used, for want of fields or because it is too long.
    tokens: NDArray[np.int64]
    predictions: NDArray[np.int64]  # positions that need logits over the vocabulary
    squares: NDArray[np.int64]  # sum of squared segment lengths, for the cost of attention
    image_tokens: NDArray[np.int64]  # that the image stem makes, each picture counted once
    audio_tokens: NDArray[np.int64]  # that the audio stem makes, each clip counted once
    # By objective: what its loss is a mean over, such as target tokens or embeddings.
    counts: dict[str, NDArray[np.float64]]
    # Refused: longer than a sequence, or what an objective cannot be taught.
    oversize: NDArray[np.bool_]
    refused_tokens: NDArray[np.int64]  # [refused], how long they are

    def totals(self) -> NDArray[np.float64]:
        """float64 [totals, n], in the order of `total_names`."""
        own = [getattr(self, name) for name in _OF_ALL_OBJECTIVES]
        counts = [self.counts[name] for name in OBJECTIVES.names()]
        return np.stack([*own, *counts]).astype(np.float64)

    def clear(self, samples: NDArray[np.bool_]) -> None:
        """Set every number of some samples to 0."""
        own = [getattr(self, name) for name in _OF_ALL_OBJECTIVES]
        for array in [*own, *self.counts.values()]:
            array[samples] = 0


def total_names() -> tuple[str, ...]:
    """The totals of a sequence: those of all objectives, then the count of each, by its name."""
    return (*_OF_ALL_OBJECTIVES, *OBJECTIVES.names())


def text_fields(tasks: list[TaskConfig]) -> list[str]:
    """Text fields the tasks read, in order, each once."""
    return list(
        dict.fromkeys(name for task in tasks for name in task.fields() if not is_media(name))
    )


class SampleMeasure:
    """Measures the samples of one set, whichever are asked for.

    Args:
        config: the set's tasks.
        dataset: its samples.
        text_tokens: token counts of every text field, uint32 [samples] (see `token_counts`).
        tokenizer: for the prompts.
        media: token counts of pictures and clips.
        seq_len: a sample that is longer is refused whole, or cut where the set's ``long`` says so.

    Raises:
        UserError: no sample has a field that a task reads.
    """

    def __init__(
        self,
        *,
        config: SetConfig,
        dataset: Dataset,
        text_tokens: dict[str, CachedArray],
        tokenizer: Tokenizer,
        media: MediaConfig,
        seq_len: int,
    ) -> None:
        self._tasks, self._dataset, self._text_tokens = config.tasks, dataset, text_tokens
        self._media, self._seq_len = media, seq_len
        self._splits = config.long == "split"
        self._prompts = [len(tokenizer.encode(task.prompt)) for task in config.tasks]
        self._fields = list(dict.fromkeys(name for task in config.tasks for name in task.fields()))
        for field in self._fields:
            dataset.check_field(field)

    def sizes(self, samples: NDArray[np.int64]) -> SampleSizes:
        """Sizes of the numbered samples, or of their parts, those of a sample together."""
        tokens = {field: self._field_tokens(field, samples) for field in self._fields}
        zero = np.zeros(len(samples), np.int64)
        sizes = SampleSizes(
            rows=np.arange(len(samples)), parts=zero, tokens=zero,
            predictions=zero, squares=zero, image_tokens=zero, audio_tokens=zero,
            counts={name: zero.astype(np.float64) for name in OBJECTIVES.names()},
            oversize=zero.astype(bool), refused_tokens=zero[:0],
        )  # fmt: skip
        for task, prompt in zip(self._tasks, self._prompts, strict=True):
            self._add_task(sizes, task, prompt, tokens)
        for field in self._fields:
            if is_media(field):
                self._add_media(sizes, field, tokens)
        if self._splits:
            return _cut(sizes, self._seq_len, self._tasks[0].objective)
        sizes.oversize = sizes.oversize | (sizes.tokens > self._seq_len)
        if sizes.oversize.any():
            sizes.refused_tokens = sizes.tokens[sizes.oversize]
            sizes.clear(sizes.oversize)
        return sizes

    def _add_task(
        self,
        sizes: SampleSizes,
        task: TaskConfig,
        prompt: int,
        tokens: dict[str, NDArray[np.int64]],
    ) -> None:
        has = _has_all(task, tokens)
        taken = OBJECTIVES[task.objective].measure(task, tokens, prompt)
        sizes.counts[task.objective] = sizes.counts[task.objective] + has * taken.count
        sizes.predictions = sizes.predictions + has * taken.predictions
        for length in taken.segments:
            sizes.tokens = sizes.tokens + has * length
            sizes.squares = sizes.squares + has * length**2
        if taken.refused is not None:
            sizes.oversize = sizes.oversize | (has & taken.refused)

    def _add_media(
        self, sizes: SampleSizes, field: str, tokens: dict[str, NDArray[np.int64]]
    ) -> None:
        # Media are decoded and embedded once, however many tasks use them.
        users = [task for task in self._tasks if field in task.fields()]
        needed = np.any([_has_all(task, tokens) for task in users], axis=0)
        if media_kind(field) == "image":
            sizes.image_tokens = sizes.image_tokens + needed * tokens[field]
        else:
            sizes.audio_tokens = sizes.audio_tokens + needed * tokens[field]

    def applies(self, samples: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        """[tasks] arrays bool [n]: does the sample have the fields of the task."""
        tokens = {field: self._field_tokens(field, samples) for field in self._fields}
        return [_has_all(task, tokens) for task in self._tasks]

    def grid(self, field: str, sample: int) -> tuple[int, int]:
        """(rows, columns) that were planned for a picture, before any EXIF turn."""
        facts = self._dataset.facts(field, np.array([sample]))[0]
        return self._media.image_grid(int(facts["b"]), int(facts["a"]))

    def _field_tokens(self, field: str, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [n]: tokens of ``field``; below 0 where a sample lacks it."""
        if not is_media(field):
            counts = self._text_tokens[field].array[samples]
            return np.where(counts == ABSENT, -1, counts.astype(np.int64))
        facts = self._dataset.facts(field, samples)
        a, b = facts["a"].astype(np.int64), np.maximum(facts["b"].astype(np.int64), 1)
        if media_kind(field) == "image":
            rows, columns = self._media.image_grid(b, np.maximum(a, 1))
            tokens = rows * columns
        else:
            tokens = self._media.audio_tokens(a, b)
        return np.where(facts["offset"] > 0, tokens, -1)


def part_range(part: int, tokens: int, seq_len: int) -> range:
    """Positions, of a segment of so many tokens, that are in a part of it."""
    return range(part * seq_len, min((part + 1) * seq_len, tokens))


def _cut(sizes: SampleSizes, seq_len: int, objective: str) -> SampleSizes:
    """The parts of samples of one segment: whole sequences, and what is left."""
    count = np.maximum(-(-sizes.tokens // seq_len), 1)
    rows = np.repeat(np.arange(len(count)), count)
    parts = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    tokens = np.minimum(sizes.tokens[rows] - parts * seq_len, seq_len)
    zero = np.zeros_like(tokens)
    counts = dict.fromkeys(sizes.counts, zero.astype(np.float64))
    return SampleSizes(
        rows=rows, parts=parts, tokens=tokens, predictions=tokens, squares=tokens**2,
        image_tokens=zero, audio_tokens=zero, counts=counts | {objective: tokens * 1.0},
        oversize=zero.astype(bool), refused_tokens=zero[:0],
    )  # fmt: skip


def _has_all(task: TaskConfig, tokens: dict[str, NDArray[np.int64]]) -> NDArray[np.bool_]:
    return np.all([tokens[field] >= 0 for field in task.fields()], axis=0)
