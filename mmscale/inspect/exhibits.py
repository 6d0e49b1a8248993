"""The few samples a page shows: thumbnails, and clips with waveform, spectrogram and sound, as data
URIs.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from functools import cache

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from mmscale.config import MediaConfig
from mmscale.data.index.dataset import Dataset
from mmscale.data.media.audio import decode_audio
from mmscale.data.media.image import decode_image
from mmscale.errors import SampleFault
from mmscale.inspect.picture import MAX_PIXELS
from mmscale.inspect.sound import MAX_S
from mmscale.inspect.table import import_extra

THUMBNAIL_PIXELS = 128 * 128
"""Area of a thumbnail, at the most; its shape is the picture's."""
CLIP_S = 6.0
"""Seconds of a clip that can be heard on the page."""
WAVE_COLUMNS, WAVE_HEIGHT = 300, 100
"""Units of a drawn waveform."""

_SOUND = MediaConfig(max_audio_s=MAX_S)
_THUMBNAIL = MediaConfig(
    image_patch=1, max_image_tokens=THUMBNAIL_PIXELS, max_image_pixels=MAX_PIXELS
)


@dataclass(frozen=True)
class Thumbnail:
    """``uri``: a WebP picture of ``width`` x ``height``."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class ClipExhibit:
    """``sound``: FLAC, mono at 16 kHz, as a model is given it. ``wave``: an SVG path of
    WAVE_COLUMNS x WAVE_HEIGHT units. ``spectrogram``: a WebP picture. ``shown_s`` of ``seconds``
    are on the page."""

    sound: str
    wave: str
    spectrogram: str
    seconds: float
    shown_s: float


def thumbnail(dataset: Dataset, sample: int) -> Thumbnail | None:
    """The sample's picture, reduced; None where it cannot be decoded."""
    try:
        pixels = decode_image(dataset.read("image", sample), _THUMBNAIL)
    except SampleFault:
        return None
    picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return Thumbnail(_webp(picture), picture.width, picture.height)


def clip(dataset: Dataset, sample: int) -> ClipExhibit | None:
    """The beginning of the sample's sound; None where it cannot be decoded."""
    from mmscale.data.media.log_mel import LogMel  # torch is slow to import

    try:
        whole = decode_audio(dataset.read("audio", sample), _SOUND)
    except SampleFault:
        return None
    wave = whole[: int(CLIP_S * _SOUND.sample_rate)]
    file = io.BytesIO()
    soundfile.write(file, wave, _SOUND.sample_rate, format="FLAC", subtype="PCM_16")
    return ClipExhibit(
        sound=_uri("audio/flac", file.getvalue()),
        wave=wave_path(wave),
        spectrogram=_webp(_paint(LogMel(_SOUND)(wave))),
        seconds=len(whole) / _SOUND.sample_rate,
        shown_s=len(wave) / _SOUND.sample_rate,
    )


def wave_path(wave: NDArray[np.float32]) -> str:
    """SVG path data around the extremes of float32 [n] in each of WAVE_COLUMNS columns."""
    edges = np.linspace(0, len(wave), min(WAVE_COLUMNS, len(wave)) + 1).astype(np.int64)[:-1]
    middle = WAVE_HEIGHT / 2
    # A line of one unit at the least, so that silence is seen as silence.
    tops = middle - np.clip(np.maximum.reduceat(wave, edges), 0, 1) * middle - 0.5
    bottoms = middle - np.clip(np.minimum.reduceat(wave, edges), -1, 0) * middle + 0.5
    across = np.linspace(0, WAVE_COLUMNS, len(edges))
    there = [f"{x:.0f} {y:.1f}" for x, y in zip(across, tops, strict=True)]
    back = [f"{x:.0f} {y:.1f}" for x, y in zip(across[::-1], bottoms[::-1], strict=True)]
    return f"M{'L'.join([*there, *back])}Z"


def _paint(mel_FM: NDArray[np.float32]) -> Image.Image:
    """Colours of a log-mel spectrogram in about [-1, 1]: time to the right, low frequencies
    below.
    """
    low, high = float(mel_FM.min()), float(mel_FM.max())
    levels = (mel_FM - low) / max(high - low, 1e-6)
    return Image.fromarray(_palette()[np.rint(levels.T[::-1] * 255).astype(np.uint8)])


@cache
def _palette() -> NDArray[np.uint8]:
    """uint8 [256, 3]: matplotlib's magma, which is even to the eye and legible without colour
    vision.
    """
    magma = import_extra("matplotlib").colormaps["magma"]
    colours: NDArray[np.uint8] = np.rint(magma(np.arange(256))[:, :3] * 255).astype(np.uint8)
    return colours


def _webp(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=80, method=4)
    return _uri("image/webp", file.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
