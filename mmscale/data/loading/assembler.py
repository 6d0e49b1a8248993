"""From planned sequences to a batch: read, decode, augment, lay out. Runs in the loader's
workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np

from mmscale import prf
from mmscale.batch import Batch
from mmscale.config import Config, TaskConfig
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.data.loading.decoded_sample import DecodedSample, DecodingMeans, mix_samples
from mmscale.data.media.augment import CROP_DRAWS
from mmscale.data.media.log_mel import LogMel
from mmscale.data.objective import TaskLayout
from mmscale.data.planning.sample_sizes import part_range
from mmscale.data.planning.step_plan import Plan, PlannedSequence, PlannedSet, PlannedStep
from mmscale.data.tokenizer import Tokenizer
from mmscale.registry import OBJECTIVES


class Assembler:
    """Builds the batch of any planned sequences.

    A sample that cannot be read or decoded leaves its place empty (padding, no targets). It is
    reported in ``Batch.faults``; nothing else in the batch changes.
    """

    def __init__(self, config: Config, plan: Plan, tokenizer: Tokenizer) -> None:
        self._plan, self._seq_len = plan, config.data.seq_len
        self._means = DecodingMeans(
            seed=config.seed, media=config.media, tokenizer=tokenizer,
            log_mel=LogMel(config.media),
            classes={
                head: {label: number for number, label in enumerate(labels)}
                for head, labels in config.model.classes.items()
            },
        )  # fmt: skip
        self._contrast_sequences = config.data.contrast_sequences
        self._prompts = {
            task.prompt: np.array(tokenizer.encode(task.prompt), np.int64)
            for planned in plan.sets
            for task in planned.config.tasks
        }

    def batch(self, step: PlannedStep, sequences: list[PlannedSequence]) -> Batch:
        """The batch of ``sequences``, all of one step."""
        builder = BatchBuilder(len(sequences), self._seq_len, self._means.media)
        keys: list[list[str]] = []
        faults: list[dict[str, Any]] = []
        for sequence in sequences:
            key = prf.derive_key(self._means.seed, "dropout", step.step, sequence.number)
            builder.open_sequence(key & 0x7FFFFFFF)
            planned = self._plan.sets[sequence.set_index]
            samples = self._read(planned, sequence)
            keys.append([sample.key for sample in samples])
            if planned.config.augment.mixup or planned.config.augment.cutmix:
                mix_samples(samples, planned.config.augment)
            group = sequence.number // self._contrast_sequences
            cursor = _SequenceCursor(builder, step, sequence, group)
            for sample in samples:
                if sample.fault is None:
                    self._lay(sample, planned, cursor)
                    continue
                where = planned.dataset.where(sample.sample, sample.fault["field"])
                faults.append({"set": planned.name, **where, **sample.fault, "step": step.step})
        return builder.finish(
            step=step.step,
            sequences=[sequence.number for sequence in sequences],
            keys=keys,
            faults=faults,
            samples=sum(len(sequence.samples) for sequence in sequences),
        )

    def _read(self, planned: PlannedSet, sequence: PlannedSequence) -> list[DecodedSample]:
        """The samples of a sequence, decoded one field after the other.

        A text between two pictures takes three times as long as one after another: a picture leaves
        nothing of what it needs in the processor's cache.
        """
        applies = np.stack(planned.measure.applies(sequence.samples), axis=1).tolist()
        samples = [
            DecodedSample(
                self._means,
                planned,
                sequence.epoch,
                number,
                [task for task, has in enumerate(tasks) if has],
                part=part if planned.config.long == "split" else None,
            )
            for number, part, tasks in zip(
                sequence.samples.tolist(), sequence.parts.tolist(), applies, strict=True
            )
        ]
        for field in dict.fromkeys(name for task in planned.config.tasks for name in task.fields()):
            having = [sample for sample in samples if field in sample.fields]
            crops: Iterable[list[float]] = repeat([])
            if field.startswith("image") and planned.config.augment.image_crop:
                drawn = [sample.draw_key(field, "crop") for sample in having]
                crops = prf.uniform_rows(
                    [prf.derive_key(*key) for key in drawn], CROP_DRAWS
                ).tolist()
            for sample, crop in zip(having, crops, strict=False):
                sample.read(field, crop)
        for sample in samples:
            sample.check()
        return samples

    def _lay(self, sample: DecodedSample, planned: PlannedSet, cursor: _SequenceCursor) -> None:
        media = sample.register(cursor.builder)
        for number in sample.tasks:
            task = planned.config.tasks[number]
            objective = OBJECTIVES[task.objective]
            objective.lay(
                TaskLayout(
                    builder=cursor.builder, sample=sample, task=task,
                    number=planned.first_task + number, prompt=self._prompts[task.prompt],
                    media=media, count=cursor.step.counts[task.objective], group=cursor.group,
                    next_slot=partial(cursor.next_slot, task.objective),
                    part=self._part(sample, task),
                )
            )  # fmt: skip

    def _part(self, sample: DecodedSample, task: TaskConfig) -> range | None:
        """Positions of the task's segment that are in the sample's part, where it is cut."""
        if sample.part is None:
            return None
        tokens = len(sample.texts[task.target]) + 1
        return part_range(sample.part, tokens, self._seq_len)


class _SequenceCursor:
    """A sequence of a step while it is laid, and how much of what was counted for it is laid."""

    def __init__(
        self, builder: BatchBuilder, step: PlannedStep, sequence: PlannedSequence, group: int
    ) -> None:
        self.builder, self.step, self.group = builder, step, group
        self._slots = {name: int(before) for name, before in sequence.before.items()}

    def next_slot(self, objective: str) -> int:
        """Place of one item more among those that the step counts for the objective."""
        self._slots[objective] += 1
        return self._slots[objective] - 1
