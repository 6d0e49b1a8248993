"""One sample on its way into a batch: read, decoded, augmented, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale import prf
from mmscale.config import AugmentConfig, MediaConfig, TaskConfig, is_media, media_kind
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.data.media.audio import decode_audio
from mmscale.data.media.augment import (
    augment_image,
    augment_mel,
    augment_wave,
    draw_crop,
    drop_text,
)
from mmscale.data.media.image import decode_image
from mmscale.data.media.log_mel import LogMel
from mmscale.data.media.mixup import mix_images
from mmscale.data.planning.bounded_cache import BoundedCache
from mmscale.data.planning.step_plan import PlannedSet
from mmscale.data.special_tokens import MASK
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import SampleFault, UserError
from mmscale.registry import OBJECTIVES

_LONG_TEXTS = 16


@dataclass(frozen=True, kw_only=True)
class DecodingMeans:
    """What every sample of a run is decoded with."""

    seed: int
    media: MediaConfig
    tokenizer: Tokenizer
    log_mel: LogMel
    classes: dict[str, dict[str, int]]  # of each linear head: number of every class
    # Texts that are cut, for their other parts: a document of 4 MB makes hundreds.
    long_texts: BoundedCache[tuple[str, NDArray[np.int64]]] = field(
        default_factory=lambda: BoundedCache(_LONG_TEXTS)
    )


class DecodedSample:
    """Decoded and augmented fields of one sample, each made once however many tasks use it."""

    def __init__(
        self,
        means: DecodingMeans,
        planned: PlannedSet,
        epoch: int,
        sample: int,
        tasks: list[int],
        part: int | None = None,
    ) -> None:
        self._means, self._planned, self._epoch, self.sample = means, planned, epoch, sample
        self.part = part  # of a sample that is cut; None: the set's samples are whole
        self.tasks = tasks  # numbers of those the sample has the fields of
        self.fields = {name for number in tasks for name in planned.config.tasks[number].fields()}
        self.key = planned.dataset.key(sample)
        # The first field that cannot be had, and the reason.
        self.fault: dict[str, str] | None = None
        self.texts: dict[str, NDArray[np.int64]] = {}
        self.raw: dict[str, str] = {}
        # Texts as the model sees them, tokens dropped.
        self.inputs: dict[str, NDArray[np.int64]] = {}
        self.images: dict[str, NDArray[np.uint8]] = {}
        # Whose picture was mixed into this one's, and the share of this one's that remains.
        self.partner: DecodedSample | None = None
        self.share = 1.0
        self._mels: dict[str, NDArray[np.float32]] = {}

    def class_of(self, task: TaskConfig) -> int:
        """Number of the sample's class among those of the task's head."""
        return self._means.classes[task.head_name()][self.raw[task.target]]

    def head_of(self, task: TaskConfig) -> int:
        """Number of the task's head among those of the model, which are sorted by name."""
        return sorted(self._means.classes).index(task.head_name())

    def has_class(self, task: TaskConfig) -> bool:
        """Whether its label is among the classes of the task's head."""
        return self.raw[task.target] in self._means.classes[task.head_name()]

    def clip_tokens(self, field: str) -> int:
        """Audio tokens of one of its clips."""
        return int(self._means.media.tokens_of(len(self._mels[field])))

    def draw_key(self, field: str, *more: str) -> tuple[int | str, ...]:
        """Parts of a key of its own for every field: changing one field's augmentation leaves the
        others alone.
        """
        seed, name = self._means.seed, self._planned.name
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
        """Find the faults that only the decoded sample shows, unless it has one."""
        for number in self.tasks if self.fault is None else ():
            task = self._planned.config.tasks[number]
            try:
                OBJECTIVES[task.objective].check_sample(self, task)
            except SampleFault as fault:
                self.fault = {"field": task.target, "reason": str(fault)}
                return

    def register(self, builder: BatchBuilder) -> dict[str, int]:
        """Hand the media to the builder; returns their numbers by field."""
        images = {field: builder.new_image(image) for field, image in self.images.items()}
        return images | {field: builder.new_clip(mel) for field, mel in self._mels.items()}

    def _read(self, field: str, crop: list[float]) -> None:
        dataset, augment = self._planned.dataset, self._planned.config.augment
        media = self._means.media
        draws = prf.Draws(self.draw_key(field))
        if not is_media(field):
            self.raw[field], self.texts[field] = self._text(field)
            self.inputs[field] = drop_text(self.texts[field], augment, draws, MASK)
            return
        data = dataset.read(field, self.sample)
        if media_kind(field) == "image":
            image = decode_image(
                data, media, partial(draw_crop, cfg=augment, numbers=crop) if crop else None
            )
            self.images[field] = augment_image(image, augment, draws)
        else:
            wave = augment_wave(decode_audio(data, media), media, augment, draws)
            self._mels[field] = augment_mel(self._means.log_mel(wave), augment, draws)

    def _text(self, field: str) -> tuple[str, NDArray[np.int64]]:
        """A text and its tokens, int64 [n]; kept for the other parts of a sample that is cut."""
        dataset, tokenizer = self._planned.dataset, self._means.tokenizer

        def read() -> tuple[str, NDArray[np.int64]]:
            text = dataset.text(field, self.sample)
            if text is None:
                raise SampleFault("the field is gone since the index was made")
            return text, np.array(tokenizer.encode(text), dtype=np.int64)

        if self.part is None:
            return read()
        return self._means.long_texts.recall((self._planned.name, self.sample, field), read)


def mix_samples(samples: list[DecodedSample], augment: AugmentConfig) -> None:
    """Blend the pictures of samples that have exactly one.

    Those with a fault are drawn as partners too, for nothing: the partners of the rest must not
    depend on faults.
    """
    single = [
        next(iter(sample.images.values()))
        if sample.fault is None and len(sample.images) == 1
        else None
        for sample in samples
    ]
    kinds = [sample.kind() for sample in samples]
    mixes = mix_images(
        single, kinds, [prf.Draws(sample.draw_key("mix")) for sample in samples], augment
    )
    for sample, mix in zip(samples, mixes, strict=True):
        if mix is not None:
            sample.images = dict.fromkeys(sample.images, mix.picture)
            sample.partner, sample.share = samples[mix.partner], mix.share
