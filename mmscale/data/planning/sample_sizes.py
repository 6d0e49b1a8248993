"""From a sample's tasks to its segments: what stands in them, and how long they are, known from the
index.

A next_token task makes one segment:   input fields · prompt · <|answer|> · target          (predicts … <|end|>)
A contrastive task makes one per field: field · <|embed|>                                     (pooled at <|embed|>)
A ctc task makes one segment:          clip                                        (its tokens spell the target)
A classify task makes one segment:     input fields · prompt · <|answer|>          (a linear head reads <|answer|>)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmscale.config import MediaConfig, SetConfig, TaskConfig, is_media
from mmscale.data.index.dataset import Dataset
from mmscale.data.planning.array_cache import CachedArray
from mmscale.data.planning.token_counts import ABSENT
from mmscale.data.tokenizer import Tokenizer


@dataclass
class SampleSizes:
    """What planning needs of some samples; arrays are [n]."""

    tokens: NDArray[
        np.int64
    ]  # of all segments; 0: not used, for want of fields or because it is too long
    targets: NDArray[
        np.float64
    ]  # next_token's supervised positions, each by its weight within the task
    predictions: NDArray[np.int64]  # positions that need logits over the vocabulary
    embeddings: NDArray[np.int64]  # <|embed|> tokens
    transcripts: NDArray[np.int64]  # tokens of ctc targets
    classes: NDArray[np.int64]  # <|answer|> tokens that a linear head reads
    squares: NDArray[np.int64]  # sum of squared segment lengths, for the cost of attention
    image_tokens: NDArray[np.int64]  # that the image stem makes, each picture counted once
    audio_tokens: NDArray[np.int64]  # that the audio stem makes, each clip counted once
    oversize: NDArray[
        np.bool_
    ]  # refused: longer than a sequence, or a clip shorter than its ctc target
    refused_tokens: NDArray[np.int64]  # [refused], how long they are


# Totals of a sequence, in the order in which `SampleSizes.totals` gives them.
TOTALS = (
    "tokens", "targets", "predictions", "embeddings", "transcripts", "classes", "squares",
    "image_tokens",
    "audio_tokens",
)  # fmt: skip


def text_fields(tasks: list[TaskConfig]) -> list[str]:
    """Text fields the tasks read, in order, each once."""
    return list(
        dict.fromkeys(name for task in tasks for name in task.fields() if not is_media(name))
    )


class SampleMeasure:
    """Measures the samples of one set, whichever are asked for.

    Args:
        config: the set's tasks.
        corpus: its samples.
        text_tokens: token counts of every text field, uint32 [samples] (see `text_lengths`).
        tokenizer: for the prompts.
        media: token counts of pictures and clips.
        seq_len: a sample that is longer is refused whole, never cut.

    Raises:
        UserError: no sample has a field that a task reads.
    """

    def __init__(
        self,
        config: SetConfig,
        dataset: Dataset,
        text_tokens: dict[str, CachedArray],
        tokenizer: Tokenizer,
        media: MediaConfig,
        seq_len: int,
    ) -> None:
        self._tasks, self._dataset, self._text_tokens = config.tasks, dataset, text_tokens
        self._media, self._seq_len = media, seq_len
        self._prompts = [len(tokenizer.encode(task.prompt)) for task in config.tasks]
        self._fields = list(dict.fromkeys(name for task in config.tasks for name in task.fields()))
        for field in self._fields:
            dataset.check_field(field)

    def sizes(self, samples: NDArray[np.int64]) -> SampleSizes:
        """Sizes of the numbered samples."""
        tokens = {field: self._field_tokens(field, samples) for field in self._fields}
        zero = np.zeros(len(samples), np.int64)
        sizes = SampleSizes(
            tokens=zero, targets=zero.astype(np.float64), predictions=zero, embeddings=zero,
            transcripts=zero,
            classes=zero, squares=zero, image_tokens=zero, audio_tokens=zero,
            oversize=zero.astype(bool),
            refused_tokens=zero[:0],
        )  # fmt: skip
        used: set[str] = set()
        for task, prompt in zip(self._tasks, self._prompts, strict=True):
            has = _has_all(task, tokens)
            if task.objective == "next_token":
                target = tokens[task.target]
                texts = [tokens[field] for field in task.input if not is_media(field)]
                # Each text of the input predicts its own tokens but the first.
                inner = sum((np.maximum(text - 1, 0) for text in texts), zero)
                segments = [sum((tokens[field] for field in task.input), target + (1 + prompt))]
                sizes.targets = sizes.targets + has * (target + 1 + task.input_weight * inner)
                read = inner if task.input_weight else zero
                sizes.predictions = sizes.predictions + has * (target + 1 + read)
            elif task.objective == "contrastive":
                segments = [tokens[field] + 1 for field in task.between]
                sizes.embeddings = sizes.embeddings + has * len(segments)
            elif task.objective == "ctc":
                segments = [tokens[task.input[0]]]
                sizes.transcripts = sizes.transcripts + has * tokens[task.target]
                sizes.predictions = sizes.predictions + has * tokens[task.input[0]]
                sizes.oversize = sizes.oversize | (
                    has & (tokens[task.input[0]] < tokens[task.target])
                )
            else:
                segments = [sum((tokens[field] for field in task.input), zero + 1 + prompt)]
                sizes.classes = sizes.classes + has
            for length in segments:
                sizes.tokens = sizes.tokens + has * length
                sizes.squares = sizes.squares + has * length**2
            used.update(field for field in task.fields() if is_media(field))
        for field in used:
            # Media are decoded and embedded once, however many tasks use them.
            needed = np.any(
                [_has_all(task, tokens) for task in self._tasks if field in task.fields()], axis=0
            )
            if field.startswith("image"):
                sizes.image_tokens = sizes.image_tokens + needed * tokens[field]
            else:
                sizes.audio_tokens = sizes.audio_tokens + needed * tokens[field]
        sizes.oversize = sizes.oversize | (sizes.tokens > self._seq_len)
        if sizes.oversize.any():
            sizes.refused_tokens = sizes.tokens[sizes.oversize]
            for name in TOTALS:
                getattr(sizes, name)[sizes.oversize] = 0
        return sizes

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
        if field.startswith("image"):
            rows, columns = self._media.image_grid(b, np.maximum(a, 1))
            tokens = rows * columns
        else:
            tokens = self._media.audio_tokens(a, b)
        return np.where(facts["offset"] > 0, tokens, -1)


def _has_all(task: TaskConfig, tokens: dict[str, NDArray[np.int64]]) -> NDArray[np.bool_]:
    return np.all([tokens[field] >= 0 for field in task.fields()], axis=0)
