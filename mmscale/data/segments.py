"""From a sample's tasks to its segments: what stands in them, and how long they are, known from the index.

A next_token task makes one segment:   input fields · prompt · <|answer|> · target          (predicts … <|end|>)
A contrastive task makes one per field: field · <|embed|>                                     (pooled at <|embed|>)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmscale.config import MEDIA_FIELDS, MediaConfig, SetConfig, TaskConfig
from mmscale.data.corpus import Corpus
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

ABSENT = np.uint32(0xFFFFFFFF)


@dataclass
class SampleSizes:
    """What planning needs of every sample; arrays are [samples]."""

    length: NDArray[np.uint32]  # tokens of all its segments; 0: not used
    targets: NDArray[np.float32]  # supervised positions, each counted by its weight within the task
    embeddings: NDArray[np.uint32]  # <|embed|> tokens
    squares: NDArray[np.uint64]  # sum of squared segment lengths, for the cost of attention
    applies: list[NDArray[np.bool_]]  # [tasks] arrays: does the sample have the task's fields
    oversize: NDArray[np.int64]  # samples refused because they are longer than a sequence


def text_fields(tasks: list[TaskConfig]) -> list[str]:
    """Text fields the tasks read, in order, each once."""
    named = dict.fromkeys(name for task in tasks for name in task.fields() if name not in MEDIA_FIELDS)
    return list(named)


def sample_sizes(
    name: str,
    config: SetConfig,
    corpus: Corpus,
    text_tokens: dict[str, NDArray[np.uint32]],
    tokenizer: Tokenizer,
    media: MediaConfig,
    seq_len: int,
) -> SampleSizes:
    """Token counts of every sample of a set.

    ``text_tokens`` maps each text field to its token counts (`ABSENT` where a sample lacks it). Samples
    longer than ``seq_len`` are refused whole, never cut; the caller reports them.

    Raises:
        UserError: no sample has the fields of any task, or none is short enough.
    """
    total = len(corpus)
    tokens = {
        field: _field_tokens(field, corpus, text_tokens, media)
        for task in config.tasks
        for field in task.fields()
    }
    sizes = SampleSizes(
        length=np.zeros(total, np.uint32),
        targets=np.zeros(total, np.float32),
        embeddings=np.zeros(total, np.uint32),
        squares=np.zeros(total, np.uint64),
        applies=[],
        oversize=np.zeros(0, np.int64),
    )
    for task in config.tasks:
        has = np.ones(total, dtype=bool)
        for field in task.fields():
            has &= tokens[field] != ABSENT
        sizes.applies.append(has)
        if task.objective == "next_token":
            target = tokens[task.target]
            text_input = sum(
                (tokens[f] for f in task.input if f not in MEDIA_FIELDS), np.zeros(total, np.uint32)
            )
            length = sum(
                (tokens[f] for f in task.input), target + np.uint32(1 + len(tokenizer.encode(task.prompt)))
            )
            supervised = (
                target + 1 + np.float32(task.input_weight) * np.maximum(text_input.astype(np.int64) - 1, 0)
            )
            sizes.targets[has] += supervised[has].astype(np.float32)
            segments = [length]
        else:
            segments = [tokens[field] + np.uint32(1) for field in task.between]
            sizes.embeddings[has] += np.uint32(len(segments))
        for length in segments:
            sizes.length[has] += length[has]
            sizes.squares[has] += length[has].astype(np.uint64) ** 2
    if not sizes.length.any():
        needed = " or ".join("+".join(task.fields()) for task in config.tasks)
        raise UserError(f"data.sets.{name}: no sample has the fields its tasks need ({needed})")
    sizes.oversize = np.nonzero(sizes.length > seq_len)[0]
    if len(sizes.oversize) == np.count_nonzero(sizes.length):
        shortest = int(sizes.length[sizes.oversize].min())
        raise UserError(
            f"data.sets.{name}: every sample is longer than data.seq_len={seq_len}; the shortest needs {shortest}"
        )
    for array in (sizes.length, sizes.targets, sizes.embeddings, sizes.squares):
        array[sizes.oversize] = 0
    return sizes


def _field_tokens(
    field: str, corpus: Corpus, text_tokens: dict[str, NDArray[np.uint32]], media: MediaConfig
) -> NDArray[np.uint32]:
    """uint32 [samples]: tokens of ``field``, `ABSENT` where a sample lacks it."""
    if field not in MEDIA_FIELDS:
        return text_tokens[field]
    facts = corpus.facts(field)
    if field == "image":
        tokens = np.full(len(facts), media.image_tokens(), dtype=np.uint32)
    else:
        frames, rate = facts["a"].astype(np.int64), np.maximum(facts["b"].astype(np.int64), 1)
        samples = -(-frames * media.sample_rate // rate)  # `MediaConfig.audio_samples`, for all at once
        mel_frames = np.maximum(1, -(-samples // media.mel_hop))
        tokens = (-(-mel_frames // media.frames_per_token)).astype(np.uint32)
    return np.where(facts["offset"] > 0, tokens, ABSENT).astype(np.uint32)
