"""From planned sequences to a batch: read, decode, augment, lay out. Runs in the loader's workers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale import prf
from mmscale.batch import Batch
from mmscale.config import MEDIA_FIELDS, AugmentConfig, Config, TaskConfig
from mmscale.data.audio import decode_audio
from mmscale.data.augment import augment_image, augment_mel, augment_wave, drop_text
from mmscale.data.builder import BatchBuilder
from mmscale.data.image import decode_image
from mmscale.data.mel import LogMel
from mmscale.data.plan import Plan, PlannedSequence, PlannedSet, PlannedStep
from mmscale.data.tokenizer import ANSWER, EMBED, END, MASK, Tokenizer
from mmscale.errors import SampleFault


class Assembler:
    """Builds the batch of any planned sequences.

    A sample that cannot be read or decoded leaves its place empty (padding, no targets) and is told in
    ``Batch.faults``; nothing else in the batch changes.
    """

    def __init__(self, config: Config, plan: Plan, tokenizer: Tokenizer) -> None:
        self._config, self._plan, self._tokenizer = config, plan, tokenizer
        self._mel = LogMel(config.media)
        self._prompts = {
            task.prompt: tokenizer.encode(task.prompt) for one in plan.sets for task in one.config.tasks
        }

    def batch(self, step: PlannedStep, sequences: list[PlannedSequence]) -> Batch:
        """The batch of ``sequences``, all of one step."""
        config = self._config
        builder = BatchBuilder(len(sequences), config.data.seq_len, config.media)
        keys: list[list[str]] = []
        faults: list[dict[str, Any]] = []
        for sequence in sequences:
            key = prf.derive_key(config.seed, "dropout", step.step, sequence.number)
            builder.open_sequence(key & 0x7FFFFFFF)
            planned = self._plan.sets[sequence.set_index]
            keys.append([planned.corpus.key(sample) for sample in sequence.samples.tolist()])
            for sample in sequence.samples.tolist():
                try:
                    content = _Content(self, planned, sequence.epoch, sample)
                except SampleFault as fault:
                    field, _, reason = str(fault).partition(": ")
                    where = planned.corpus.where(sample, field)
                    faults.append(
                        {"set": planned.name, **where, "field": field, "reason": reason, "step": step.step}
                    )
                    continue
                self._lay(builder, content, planned, sample, step)
        return builder.finish(
            step=step.step,
            sequences=[sequence.number for sequence in sequences],
            keys=keys,
            faults=faults,
            samples=sum(len(sequence.samples) for sequence in sequences),
        )

    def _lay(
        self, builder: BatchBuilder, content: _Content, planned: PlannedSet, sample: int, step: PlannedStep
    ) -> None:
        media = content.register(builder)
        for number, task in enumerate(planned.config.tasks):
            if not planned.sizes.applies[number][sample]:
                continue
            if task.objective == "next_token":
                self._lay_next_token(builder, content, media, task, step)
            else:
                self._lay_contrastive(builder, content, media, task, planned.first_task + number, step)

    def _lay_next_token(
        self,
        builder: BatchBuilder,
        content: _Content,
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
        content: _Content,
        media: dict[str, int],
        task: TaskConfig,
        number: int,
        step: PlannedStep,
    ) -> None:
        match = prf.derive_key("match", content.raw[task.match] if task.match else content.key) >> 1
        for side, field in enumerate(task.between):
            builder.open_segment()
            _add_field(builder, content.inputs, media, field)
            at = builder.add_text([EMBED])
            builder.add_embedding(int(at[0]), number, side, match, task.weight / step.embeddings)


class _Content:
    """Decoded and augmented fields of one sample, each made once however many tasks use it."""

    def __init__(self, assembler: Assembler, planned: PlannedSet, epoch: int, sample: int) -> None:
        config, tokenizer, corpus = assembler._config, assembler._tokenizer, planned.corpus
        augment: AugmentConfig = planned.config.augment
        self.key = corpus.key(sample)
        self.texts: dict[str, NDArray[np.int64]] = {}
        self.raw: dict[str, str] = {}
        self.inputs: dict[str, NDArray[np.int64]] = {}  # texts as the model sees them, tokens dropped
        self.image: NDArray[np.uint8] | None = None
        self.mel: NDArray[np.float32] | None = None
        applicable = [
            t for t, has in zip(planned.config.tasks, planned.sizes.applies, strict=True) if has[sample]
        ]
        for field in dict.fromkeys(name for task in applicable for name in task.fields()):
            # Draws of its own for every field, so that changing one field's augmentation leaves the others alone.
            draws = prf.Draws(prf.derive_key(config.seed, "augment", planned.name, epoch, sample, field))
            try:
                if field == "image":
                    image = decode_image(corpus.read(field, sample), config.media)
                    self.image = augment_image(image, augment, draws)
                elif field == "audio":
                    wave = decode_audio(corpus.read(field, sample), config.media)
                    mel = assembler._mel(augment_wave(wave, config.media, augment, draws))
                    self.mel = augment_mel(mel, augment, draws)
                else:
                    text = corpus.text(field, sample)
                    if text is None:
                        raise SampleFault("the field is gone since the index was made")
                    self.raw[field] = text
                    self.texts[field] = np.array(tokenizer.encode(text), dtype=np.int64)
                    self.inputs[field] = drop_text(self.texts[field], augment, draws, MASK)
            except SampleFault as fault:
                raise SampleFault(f"{field}: {str(fault).removeprefix(field + ': ')}") from None
        assert all(
            field in self.texts for task in applicable for field in task.fields() if field not in MEDIA_FIELDS
        )

    def register(self, builder: BatchBuilder) -> dict[str, int]:
        """Hand the media to the builder; returns their numbers by field."""
        numbers = {}
        if self.image is not None:
            numbers["image"] = builder.new_image(self.image)
        if self.mel is not None:
            numbers["audio"] = builder.new_clip(self.mel)
        return numbers


def _add_field(
    builder: BatchBuilder, texts: dict[str, NDArray[np.int64]], media: dict[str, int], field: str
) -> NDArray[np.int64] | None:
    """Add one field to the open segment; returns flat positions if it is text."""
    if field == "image":
        builder.add_image(media[field])
        return None
    if field == "audio":
        builder.add_clip(media[field])
        return None
    return builder.add_text(texts[field])
