"""From planned sequences to a batch: read, decode, augment, lay out. Runs in the loader's
workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale import prf
from mmscale.batch import Batch
from mmscale.config import AugmentConfig, Config, TaskConfig, is_media
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.data.media.audio import decode_audio
from mmscale.data.media.augment import (
    CROP_DRAWS,
    augment_image,
    augment_mel,
    augment_wave,
    draw_crop,
    drop_text,
)
from mmscale.data.media.image import decode_image
from mmscale.data.media.log_mel import LogMel
from mmscale.data.media.mixup import mix_images
from mmscale.data.planning.step_plan import Plan, PlannedSequence, PlannedSet, PlannedStep
from mmscale.data.tokenizer import ANSWER, EMBED, END, MASK, Tokenizer
from mmscale.errors import SampleFault, UserError


class Assembler:
    """Builds the batch of any planned sequences.

    A sample that cannot be read or decoded leaves its place empty (padding, no targets) and is told
    in ``Batch.faults``; nothing else in the batch changes.
    """

    def __init__(self, config: Config, plan: Plan, tokenizer: Tokenizer) -> None:
        self._plan, self._seq_len = plan, config.data.seq_len
        self.seed, self.media, self.tokenizer = config.seed, config.media, tokenizer
        self.log_mel = LogMel(config.media)
        self._contrast_sequences = config.data.contrast_sequences
        self.classes = {
            name: {label: n for n, label in enumerate(labels)}
            for name, labels in config.model.classes.items()
        }
        self._head_numbers = {name: n for n, name in enumerate(sorted(config.model.classes))}
        self._prompts = {
            task.prompt: tokenizer.encode(task.prompt)
            for one in plan.sets
            for task in one.config.tasks
        }

    def batch(self, step: PlannedStep, sequences: list[PlannedSequence]) -> Batch:
        """The batch of ``sequences``, all of one step."""
        builder = BatchBuilder(len(sequences), self._seq_len, self.media)
        keys: list[list[str]] = []
        faults: list[dict[str, Any]] = []
        for sequence in sequences:
            key = prf.derive_key(self.seed, "dropout", step.step, sequence.number)
            builder.open_sequence(key & 0x7FFFFFFF)
            planned = self._plan.sets[sequence.set_index]
            every = self._read(planned, sequence)
            keys.append([content.key for content in every])
            contents = []
            for content in every:
                if content.fault is None:
                    contents.append(content)
                else:
                    where = planned.dataset.where(content.sample, content.fault["field"])
                    faults.append(
                        {"set": planned.name, **where, **content.fault, "step": step.step}
                    )
            if planned.config.augment.mixup or planned.config.augment.cutmix:
                _mix(every, planned.config.augment)
            place = _SequenceCursor(step, sequence, sequence.number // self._contrast_sequences)
            for content in contents:
                self._lay(builder, content, planned, place)
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
        contents = [
            DecodedSample(
                self, planned, sequence.epoch, sample, [n for n, one in enumerate(tasks) if one]
            )
            for sample, tasks in zip(sequence.samples.tolist(), applies, strict=True)
        ]
        for field in dict.fromkeys(name for task in planned.config.tasks for name in task.fields()):
            having = [content for content in contents if field in content.fields]
            crops: Iterable[list[float]] = repeat([])
            if field.startswith("image") and planned.config.augment.image_crop:
                drawn = [content.draw_key(field, "crop") for content in having]
                crops = prf.uniform_rows(
                    [prf.derive_key(*key) for key in drawn], CROP_DRAWS
                ).tolist()
            for content, crop in zip(having, crops, strict=False):
                content.read(field, crop)
        for content in contents:
            content.check()
        return contents

    def _lay(
        self,
        builder: BatchBuilder,
        content: DecodedSample,
        planned: PlannedSet,
        place: _SequenceCursor,
    ) -> None:
        media, step = content.register(builder), place.step
        for number in content.tasks:
            task = planned.config.tasks[number]
            if task.objective == "next_token":
                self._lay_next_token(builder, content, media, task, step)
            elif task.objective == "contrastive":
                self._lay_contrastive(
                    builder, content, media, task, planned.first_task + number, place
                )
            elif task.objective == "ctc":
                builder.open_segment()
                at = builder.add_clip(media[task.input[0]])
                builder.add_transcript(
                    at, content.texts[task.target], task.weight / max(1, step.transcripts)
                )
            else:
                self._lay_class(builder, content, media, task, step)

    def _lay_next_token(
        self,
        builder: BatchBuilder,
        content: DecodedSample,
        media: dict[str, int],
        task: TaskConfig,
        step: PlannedStep,
    ) -> None:
        builder.open_segment()
        for field in task.input:
            at = _add_field(builder, content.inputs, media, field)
            if at is not None and task.input_weight and len(at) > 1:
                weight = task.weight * task.input_weight / step.targets
                builder.add_targets(at[:-1], content.texts[field][1:], weight)
        builder.add_text(self._prompts[task.prompt])
        answer = content.texts[task.target]
        at = builder.add_text(np.concatenate([[ANSWER], answer]))
        builder.add_targets(at, np.concatenate([answer, [END]]), task.weight / step.targets)

    def _lay_contrastive(
        self,
        builder: BatchBuilder,
        content: DecodedSample,
        media: dict[str, int],
        task: TaskConfig,
        number: int,
        place: _SequenceCursor,
    ) -> None:
        match = prf.derive_key("match", content.raw[task.match] if task.match else content.key) >> 1
        for side, field in enumerate(task.between):
            builder.open_segment()
            _add_field(builder, content.inputs, media, field)
            at = builder.add_text([EMBED])
            builder.add_embedding(
                int(at[0]), slot=place.next_slot(), group=place.group, task=number, side=side,
                match=match,
                weight=task.weight / place.step.embeddings,
            )  # fmt: skip

    def _lay_class(
        self,
        builder: BatchBuilder,
        content: DecodedSample,
        media: dict[str, int],
        task: TaskConfig,
        step: PlannedStep,
    ) -> None:
        builder.open_segment()
        for field in task.input:
            _add_field(builder, content.inputs, media, field)
        at = builder.add_text(np.concatenate([self._prompts[task.prompt], [ANSWER]]))
        first = content.class_of(task)
        second = content.other.class_of(task) if content.other else first
        head = self._head_numbers[task.head_name()]
        builder.add_class(
            int(at[-1]), head, (first, second), content.share, task.weight / step.classes
        )


class _SequenceCursor:
    """A sequence of a step, and how many of its planned embeddings have been laid."""

    def __init__(self, step: PlannedStep, sequence: PlannedSequence, group: int) -> None:
        self.step, self.group, self._slot = step, group, sequence.first_embedding

    def next_slot(self) -> int:
        self._slot += 1
        return self._slot - 1


class DecodedSample:
    """Decoded and augmented fields of one sample, each made once however many tasks use it."""

    def __init__(
        self, assembler: Assembler, planned: PlannedSet, epoch: int, sample: int, tasks: list[int]
    ) -> None:
        self._assembler, self._planned, self._epoch, self.sample = assembler, planned, epoch, sample
        self.tasks = tasks  # numbers of those the sample has the fields of
        self.fields = {name for number in tasks for name in planned.config.tasks[number].fields()}
        self.key = planned.dataset.key(sample)
        self.fault: dict[str, str] | None = (
            None  # the first field that cannot be had, and the reason
        )
        self.texts: dict[str, NDArray[np.int64]] = {}
        self.raw: dict[str, str] = {}
        self.inputs: dict[
            str, NDArray[np.int64]
        ] = {}  # texts as the model sees them, tokens dropped
        self.images: dict[str, NDArray[np.uint8]] = {}
        self.other: DecodedSample | None = None  # whose picture was mixed into this one's, of which
        self.share = 1.0  # is the part that remains
        self._mels: dict[str, NDArray[np.float32]] = {}

    def class_of(self, task: TaskConfig) -> int:
        """Number of the sample's class among those of the task's head."""
        return self._assembler.classes[task.head_name()][self.raw[task.target]]

    def draw_key(self, field: str, *more: str) -> tuple[int | str, ...]:
        """Parts of a key of its own for every field: changing one field's augmentation leaves the
        others alone.
        """
        seed, name = self._assembler.seed, self._planned.name
        return (seed, "augment", name, self._epoch, self.sample, field, *more)

    def kind(self) -> tuple[Any, ...]:
        """Equal for samples that may be blended: tasks, and planned sizes of their pictures."""
        pictures = [field for field in sorted(self.fields) if field.startswith("image")]
        return *self.tasks, *(
            (field, self._planned.measure.grid(field, self.sample)) for field in pictures
        )

    def read(self, field: str, crop: list[float]) -> None:
        """Read, decode and augment one field, unless the sample has a fault. ``crop``: draws for a
        picture's part.
        """
        if self.fault is None:
            try:
                self._read(field, crop)
            except SampleFault as fault:
                self.fault = {"field": field, "reason": str(fault).removeprefix(field + ": ")}
            except UserError as error:  # the machine's trouble, which may be this sample's doing
                raise UserError(f"sample {self.key!r}: {field}: {error}") from None

    def check(self) -> None:
        """Find the faults that only the decoded sample tells, unless it has one."""
        for number in self.tasks if self.fault is None else ():
            task = self._planned.config.tasks[number]
            try:
                self._check(task)
            except SampleFault as fault:
                self.fault = {"field": task.target, "reason": str(fault)}
                return

    def _check(self, task: TaskConfig) -> None:
        if (
            task.objective == "classify"
            and self.raw[task.target] not in self._assembler.classes[task.head_name()]
        ):
            raise SampleFault(f"its class is not among model.classes.{task.head_name()}")
        if task.objective == "ctc":
            ids = self.texts[task.target]
            # CTC puts a blank between equal neighbours.
            needed = len(ids) + int((ids[1:] == ids[:-1]).sum())
            clip = self._mels[task.input[0]]
            if self._assembler.media.tokens_of(len(clip)) < needed:
                raise SampleFault("too long for its clip to be spelled by CTC")

    def register(self, builder: BatchBuilder) -> dict[str, int]:
        """Hand the media to the builder; returns their numbers by field."""
        images = {field: builder.new_image(image) for field, image in self.images.items()}
        return images | {field: builder.new_clip(mel) for field, mel in self._mels.items()}

    def _read(self, field: str, crop: list[float]) -> None:
        dataset, augment = self._planned.dataset, self._planned.config.augment
        media, tokenizer = self._assembler.media, self._assembler.tokenizer
        draws = prf.Draws(self.draw_key(field))
        if not is_media(field):
            text = dataset.text(field, self.sample)
            if text is None:
                raise SampleFault("the field is gone since the index was made")
            self.raw[field] = text
            self.texts[field] = np.array(tokenizer.encode(text), dtype=np.int64)
            self.inputs[field] = drop_text(self.texts[field], augment, draws, MASK)
            return
        data = dataset.read(field, self.sample)
        if field.startswith("image"):
            image = decode_image(
                data, media, partial(draw_crop, cfg=augment, numbers=crop) if crop else None
            )
            self.images[field] = augment_image(image, augment, draws)
        else:
            wave = augment_wave(decode_audio(data, media), media, augment, draws)
            self._mels[field] = augment_mel(self._assembler.log_mel(wave), augment, draws)


def _mix(contents: list[DecodedSample], augment: AugmentConfig) -> None:
    """Blend the pictures of samples that have exactly one.

    Those with a fault are drawn as partners too, for nothing: the partners of the others are to be
        the same without it.
    """
    single = [
        next(iter(one.images.values())) if one.fault is None and len(one.images) == 1 else None
        for one in contents
    ]
    kinds = [one.kind() for one in contents]
    mixes = mix_images(single, kinds, [prf.Draws(one.draw_key("mix")) for one in contents], augment)
    for content, mix in zip(contents, mixes, strict=True):
        if mix is not None:
            content.images = dict.fromkeys(content.images, mix.picture)
            content.other, content.share = contents[mix.partner], mix.share


def _add_field(
    builder: BatchBuilder, texts: dict[str, NDArray[np.int64]], media: dict[str, int], field: str
) -> NDArray[np.int64] | None:
    """Add one field to the open segment; returns flat positions if it is text."""
    if not is_media(field):
        return builder.add_text(texts[field])
    if field.startswith("image"):
        builder.add_image(media[field])
    else:
        builder.add_clip(media[field])
    return None
