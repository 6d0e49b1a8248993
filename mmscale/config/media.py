"""How pictures and sound become tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmscale.config.keys import key
from mmscale.errors import UserError


@dataclass(kw_only=True)
class MediaConfig:
    """How pictures and sound become tokens. Planning, decoding and the stems read the same
    numbers.
    """

    image_height: int = key(
        64, "Height in pixels that every picture is resized to; a multiple of image_patch.", low=1
    )
    image_width: int = key(
        64, "Width in pixels that every picture is resized to; a multiple of image_patch.", low=1
    )
    max_image_tokens: int = key(
        0,
        "Above 0: each picture keeps its aspect ratio and gets at most this many tokens, as "
        "many as it has detail for. 0: stretch it to image_height x image_width.",
        low=0,
    )
    image_patch: int = key(16, "Side in pixels of the square that becomes one token.", low=1)
    max_image_pixels: int = key(64_000_000, "Larger pictures are refused, by their header.", low=1)
    sample_rate: int = key(16_000, "Samples per second after resampling.", low=1000)
    mel_bins: int = key(80, "Mel bands of the log-mel spectrogram.", low=1)
    mel_window: int = key(400, "Samples of one analysis window (25 ms at 16 kHz).", low=1)
    mel_hop: int = key(160, "Samples between two frames (10 ms at 16 kHz).", low=1)
    frames_per_token: int = key(8, "Spectrogram frames in one token; a power of two.", low=1)
    max_audio_s: float = key(30.0, "Longer clips are refused, by their header; seconds.", low=0.0)
    max_file_bytes: int = key(
        64_000_000, "Larger files in a shard are refused before they are read.", low=1
    )

    def image_grid(self, height: Any, width: Any) -> tuple[Any, Any]:
        """Rows and columns of tokens of a picture of ``height`` x ``width`` pixels, numbers or
        int64 arrays.

        With `max_image_tokens`, the largest whole grid of at most so many patches that keeps the
        aspect ratio and does not enlarge the picture (as NaViT's; Dehghani et al., 2023), never
        less than one patch. Turning the picture by 90 degrees swaps the two, so a plan need not
        know about EXIF turns.
        """
        height, width = np.asarray(height, np.float64), np.asarray(width, np.float64)
        patch, most = self.image_patch, self.max_image_tokens
        if not most:
            rows = np.full(height.shape, self.image_height // patch)
            columns = np.full(height.shape, self.image_width // patch)
        else:
            # sqrt and division are correctly rounded everywhere, so every machine finds the same
            # grid.
            shrunk = np.minimum(height / patch, np.sqrt(most * height / width))
            rows = np.clip(np.floor(shrunk).astype(np.int64), 1, most)
            shrunk = np.minimum(width / patch, np.sqrt(most * width / height))
            columns = np.clip(np.floor(shrunk).astype(np.int64), 1, most)
        return (rows, columns) if rows.ndim else (int(rows), int(columns))

    def audio_tokens(self, frames: Any, rate: Any) -> Any:
        """Tokens of a clip of ``frames`` samples at ``rate`` Hz, numbers or int64 arrays."""
        return self.tokens_of(self.audio_frames(self.audio_samples(frames, rate)))

    def tokens_of(self, frames: Any) -> Any:
        """Tokens of a spectrogram of ``frames`` frames, the last one perhaps only partly filled."""
        return -(-frames // self.frames_per_token)

    def audio_samples(self, frames: Any, rate: Any) -> Any:
        """Samples at `sample_rate` of a clip of ``frames`` samples at ``rate`` Hz (rounded up)."""
        return -(-frames * self.sample_rate // rate)

    def audio_frames(self, samples: Any) -> Any:
        """Spectrogram frames of ``samples`` samples at `sample_rate`, at least one."""
        frames = -(-samples // self.mel_hop)
        return frames + (frames == 0)


# What is allocated when a model is opened, before anything is read, follows from these; a release
# may come from anyone.
_MOST = {
    "sample_rate": 384_000,
    "mel_window": 1 << 14,
    "mel_bins": 512,
    "image_height": 1 << 14,
    "image_width": 1 << 14,
}


def check_media(media: MediaConfig) -> None:
    for name, most in _MOST.items():
        if getattr(media, name) > most:
            raise UserError(f"media.{name}: {getattr(media, name)} is above {most}; use less")
    for axis in ("image_height", "image_width"):
        if getattr(media, axis) % media.image_patch:
            raise UserError(
                f"media.{axis}: {getattr(media, axis)} is not a multiple of "
                f"media.image_patch={media.image_patch}"
            )
    if media.frames_per_token & (media.frames_per_token - 1):
        raise UserError(
            f"media.frames_per_token: {media.frames_per_token} is not a power of two; "
            f"try {1 << (media.frames_per_token.bit_length() - 1)}"
        )
    if media.mel_window < media.mel_hop:
        raise UserError("media.mel_window: shorter than media.mel_hop; frames would skip samples")
