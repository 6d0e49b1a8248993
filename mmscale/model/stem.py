"""What a stem is: the part of the model that makes vectors of the model's width from a picture or a
spectrogram.

A stem is a kind of `mmscale.registry.IMAGE_STEMS` or `AUDIO_STEMS`: a class in one file of
`mmscale.model.image_stems` or `audio_stems`, named as the file is. It is made from the config's
``model`` and ``media``, and it must:

- give a fixed number of tokens per item, computed from each item alone: what else is in the batch,
  and how far an item is padded, changes nothing;
- derive from `ImageStem` or `AudioStem`, whose methods say which shapes go in and out;
- carry ``width_rules`` and ``flops``, see `Stem`. Nothing else in the package names a kind of stem
  to know its costs or its learning rates.

Shape suffixes: N items, T tokens, D model width; H, W pixels; F frames, M mel bands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmscale.config import MediaConfig, ModelConfig
from mmscale.registry import AUDIO_STEMS, IMAGE_STEMS


class Stem(nn.Module):
    """What stems of both media carry.

    Attributes:
        width_rules: by the first letters of its own parameters' names, how their sizes follow the
            model's width (`mmscale.model.width`): ``hidden``, ``output`` or ``input``. Where
            several fit, the longest counts. A parameter that none fits is an error. Most stems need
            ``input`` alone: convolutions and projections of pixels, bands or channels do not read
            the model's width. Vectors (norms, biases) are ``input`` whatever is said here.
        loaded: first letters of the names of parameters that are read from files after the others
            were initialised, so that their initial values do not matter.
    """

    width_rules: ClassVar[Mapping[str, str]] = {}
    loaded: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def flops(cls, config: ModelConfig, media: MediaConfig) -> float:
        """Floating-point operations of the forward pass for one token; a multiply-add counts as
        two. A stem may have it as a static method.
        """
        raise AssertionError(f"{cls.__name__} has no flops; add its operations for one token")


class ImageStem(Stem):
    """uint8 [N, 3, H, W] → [N, T, D], a token for each square of ``media.image_patch`` pixels, row
    by row.
    """

    def forward(self, image_N3HW: Tensor, size_N2: Tensor | None = None) -> Tensor:
        """``size_N2`` int64: the real heights and widths where pictures are padded; None: none
        is.
        """
        raise AssertionError("every stem has its own")


class AudioStem(Stem):
    """float32 [N, F, M], frames int64 [N] and chunks (see `Batch`) → [T, D], the tokens of all
    chunks in turn.

    Clips of like length are encoded together, so that little of the work is padding. The chunks are
    encoded inside of one call, because strategies gather a stem's weights once a call, on every
    rank.
    """

    def forward(
        self, audio_NFM: Tensor, frames_N: Tensor, chunks: list[tuple[int, int, int]]
    ) -> Tensor:
        return torch.cat(
            [
                self.encode(audio_NFM[first:last, :frames], frames_N[first:last]).flatten(0, 1)
                for first, last, frames in chunks
            ]
        )

    def encode(self, audio_NFM: Tensor, frames_N: Tensor) -> Tensor:
        """Of clips that are padded to whole tokens: [N, F / frames_per_token, D]."""
        raise AssertionError("every stem has its own")


def stem_class(part: str, config: ModelConfig) -> type[Stem] | None:
    """The class of the model's part ``image_stem`` or ``audio_stem``; None: another part."""
    kinds = {"image_stem": IMAGE_STEMS, "audio_stem": AUDIO_STEMS}
    if part not in kinds:
        return None
    stem: type[Stem] = kinds[part][getattr(config, part)]
    return stem


def centred_pixels(image_N3HW: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels of 0 to 255 as numbers of -1 to 1."""
    return (image_N3HW.to(dtype) - 127.5) / 127.5
