"""The worst pictures and clips near those of a batch: projected gradient ascent (PGD; Madry et al.,
2018).

Used to measure a model (`mmscale.evaluate.robustness`) and to train one
(`mmscale.train.adversarial`). The loss is a sum over samples that do not see each other, so what is
found for a sample does not depend on which share its batch.

Shape suffixes: N items, 3HW pixels, F frames, M mel bands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmscale import prf
from mmscale.batch import Batch
from mmscale.config import MediaConfig

Gradients = Callable[[Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Budget:
    """How far an attack may go: ``image`` of 255, ``audio`` of log-mel (0.05 is 2 dB), in so many
    ``steps``.
    """

    image: float
    audio: float
    steps: int

    @property
    def step_share(self) -> float:
        """A step as a share of the distance: 2.5 / steps, so that any corner can be reached (Madry
        et al.); of one or two steps 1.25 (Wong et al., "Fast is better than free", 2020)."""
        return min(1.25, 2.5 / self.steps)


@dataclass(frozen=True)
class ItemKeys:
    """A key for the random start of every picture and clip of a batch, and whether it is attacked
    at all.
    """

    images: list[int]
    clips: list[int]
    images_on: list[bool]
    clips_on: list[bool]


def attack(
    batch: Batch, media: MediaConfig, budget: Budget, keys: ItemKeys, gradients: Gradients
) -> Batch:
    """``batch`` with pictures (now float32, 0 to 255) and clips changed within ``budget`` so that
    its loss grows.

    ``gradients`` gives those of the loss with regard to ``image_N3HW`` and ``audio_NFM`` of the
    batch it is given, in which there is always at least one of each; it is called ``budget.steps``
    times, whatever the batch holds, because behind it may be collectives that every rank must take
    part in.
    """
    images, clips = len(batch.image_N3HW), len(batch.audio_NFM)
    whole = never_empty(batch, media)
    image, audio = whole.image_N3HW.float(), whole.audio_NFM
    image_room = _room(image, whole.image_size_N2, budget.image, keys.images_on)
    audio_room = _room(audio[:, None], _clip_sizes(whole), budget.audio, keys.clips_on)[:, 0]
    image_change = _starts(image, whole.image_size_N2.tolist(), keys.images) * image_room
    audio_change = (
        (_starts(audio[:, None], _clip_sizes(whole).tolist(), keys.clips)[:, 0]) * audio_room
    )
    for _ in range(budget.steps):
        image_change = (image + image_change).clamp(0.0, 255.0) - image
        changed = replace(
            whole,
            image_N3HW=(image + image_change).requires_grad_(),
            audio_NFM=(audio + audio_change).requires_grad_(),
        )
        of_image, of_audio = gradients(changed)
        image_change = _step(image_change, of_image, image_room, budget.step_share)
        audio_change = _step(audio_change, of_audio, audio_room, budget.step_share)
    return replace(
        batch,
        image_N3HW=(image + image_change).clamp(0.0, 255.0)[:images]
        if images
        else batch.image_N3HW,
        audio_NFM=(audio + audio_change)[:clips] if clips else batch.audio_NFM,
    )


def first_places(batch: Batch, media: MediaConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Flat position of the first token of every picture, int64 [N], and of every clip. It tells
    items apart however they are batched."""
    columns = batch.image_N3HW.shape[3] // media.image_patch
    per_image = batch.image_N3HW.shape[2] // media.image_patch * columns
    picture_of_T = batch.image_take_T.cpu().numpy() // max(1, per_image)
    owners = [
        np.repeat(np.arange(first, last), frames // media.frames_per_token)
        for first, last, frames in batch.audio_chunks
    ]
    clip_of = np.concatenate(owners) if owners else np.zeros(0, np.int64)
    clip_of_T = clip_of[batch.audio_take_T.cpu().numpy()] if len(clip_of) else np.zeros(0, np.int64)
    return (
        _firsts(picture_of_T, batch.image_at_T.cpu().numpy(), len(batch.image_N3HW)),
        _firsts(clip_of_T, batch.audio_at_T.cpu().numpy(), len(batch.audio_NFM)),
    )


def _firsts(owner_T: NDArray[np.int64], at_T: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    first_N = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first_N, owner_T, at_T)
    return first_N


def never_empty(batch: Batch, media: MediaConfig) -> Batch:
    """One blank item, which nothing reads, where there is none; the model would put it there
    itself.
    """
    if not len(batch.image_N3HW):
        shape = batch.image_N3HW.shape[1:]
        batch = replace(
            batch,
            image_N3HW=batch.image_N3HW.new_zeros(1, *shape),
            image_size_N2=batch.image_size_N2.new_tensor([shape[1:]]),
        )
    if not len(batch.audio_NFM):
        frames = media.frames_per_token
        batch = replace(
            batch,
            audio_NFM=batch.audio_NFM.new_zeros(1, frames, media.mel_bins),
            audio_frames_N=batch.audio_frames_N.new_full((1,), frames),
            audio_chunks=[(0, 1, frames)],
        )
    return batch


def _clip_sizes(batch: Batch) -> Tensor:
    bands = torch.full_like(batch.audio_frames_N, batch.audio_NFM.shape[2])
    return torch.stack([batch.audio_frames_N, bands], dim=1)


def _room(x: Tensor, size_N2: Tensor, most: float, on: list[bool]) -> Tensor:
    """How far every value of [N, C, H, W] may go: ``most`` where an item is real and attacked, else
    0; [N, 1, H, W].
    """
    rows = torch.arange(x.shape[2], device=x.device) < size_N2[:, :1]
    columns = torch.arange(x.shape[3], device=x.device) < size_N2[:, 1:]
    chosen = torch.tensor(on or [False], device=x.device)
    return (rows[:, None, :, None] & columns[:, None, None, :] & chosen[:, None, None, None]) * most


def _starts(x: Tensor, sizes: list[list[int]], keys: list[int]) -> Tensor:
    """Uniform numbers in [-1, 1) of an item's own size, under its key; zeros where it is padded."""
    out = np.zeros(x.shape, np.float32)
    for number, key in enumerate(keys):
        shape = (x.shape[1], *sizes[number])
        out[number, :, : shape[1], : shape[2]] = (
            2.0 * prf.uniform(key, int(np.prod(shape))) - 1.0
        ).reshape(shape)
    return torch.from_numpy(out).to(x.device)


def _step(change: Tensor, gradient: Tensor, room: Tensor, share: float) -> Tensor:
    stepped = change + share * room * gradient.float().sign()
    return torch.minimum(torch.maximum(stepped, -room), room)
