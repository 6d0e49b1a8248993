"""Sound read block by block is the sound read at once, in every format."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from mmscale.config import MediaConfig
from mmscale.data.media.audio import decode_audio
from mmscale.data.media.forward_sound import ForwardSound


def tones(seconds: int, rate: int) -> np.ndarray:
    """MP3 gives them so few bits that frames lean on those before them."""
    t = np.arange(seconds * rate) / rate
    return 0.5 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 1234 * t)


def encoded(wave: np.ndarray, rate: int, format: str, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=format, subtype=subtype)
    return buffer.getvalue()


FORMATS = [("MP3", None), ("OGG", "OPUS"), ("OGG", "VORBIS"), ("FLAC", None), ("WAV", None)]


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize(("format", "subtype"), FORMATS)
def test_a_clip_of_several_blocks(format: str, subtype: str | None, rate: int) -> None:
    data = encoded(tones(10, rate), rate, format, subtype)
    whole = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    assert np.abs(decode_audio(data, MediaConfig(sample_rate=rate)) - whole).max() < 1e-6


def test_blocks_of_any_size_after_a_seek() -> None:
    data = encoded(tones(4, 16_000), 16_000, "MP3")
    whole = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    with ForwardSound(io.BytesIO(data)) as sound:
        sound.seek(0)
        parts = [sound.read(1000, dtype="float32") for _ in range(60)]
    assert np.abs(np.concatenate(parts) - whole[:60_000]).max() < 1e-6
