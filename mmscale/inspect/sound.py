"""What one clip is measured for, at its own sample rate: level, peak, clipping and contents."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.config import MediaConfig
from mmscale.data.media.audio import decode_audio

# Within two steps of 16 bits of full scale; a plateau there of at least three samples is a cut-off
# wave.
_FULL_SCALE = 32766 / 32768
_PLATEAU = 3
# What the index admitted, under limits of its own, is looked at; this bounds the memory of a
# process.
MAX_S = 600.0

_MEDIA = MediaConfig(max_audio_s=MAX_S)
# dBFS that stands for no sound at all: below half a step of 24 bits.
FLOOR_DB = -150.0


def measure_sound(data: bytes, rate: int) -> dict[str, Any]:
    """Measures of one encoded clip of ``rate`` Hz, by column of the table.

    ``audio_peak`` and ``audio_level`` (root mean square) are in dB below full scale;
    ``audio_clipped_samples`` counts the samples that stand on plateaus at full scale;
    ``audio_hash`` is of the waveform.

    Raises `SampleFault` when it cannot be decoded.
    """
    # Not resampled: that would round plateaus off.
    wave = decode_audio(data, replace(_MEDIA, sample_rate=rate))
    power = float(np.mean(np.square(wave, dtype=np.float64)))
    return {
        "audio_hash": _hash(wave, rate),
        "audio_peak": _decibels(float(np.abs(wave).max()) ** 2),
        "audio_level": _decibels(power),
        "audio_clipped_samples": clipped_samples(wave),
    }


def clipped_samples(wave: NDArray[np.float32]) -> int:
    """Samples of float32 [n] that stand in runs of at least three at full scale, of one sign."""
    total = 0
    for sign in (1.0, -1.0):
        full = np.concatenate(([False], wave * sign >= _FULL_SCALE, [False]))
        edges = np.flatnonzero(full[1:] != full[:-1])
        runs = edges[1::2] - edges[::2]
        total += int(runs[runs >= _PLATEAU].sum())
    return total


def _hash(wave: NDArray[np.float32], rate: int) -> str:
    """Of the waveform in 16 bits without silence around it: the same for a clip saved as WAV and as
    FLAC.
    """
    steps = np.clip(np.rint(wave * 32768), -32768, 32767).astype("<i2")
    loud = np.flatnonzero(steps)
    kept = steps[loud[0] : loud[-1] + 1] if len(loud) else steps[:0]
    return hashlib.blake2b(
        kept.tobytes(), digest_size=16, salt=rate.to_bytes(8, "little")
    ).hexdigest()


def _decibels(power: float) -> float:
    return max(FLOOR_DB, 10.0 * float(np.log10(max(power, 1e-30))))
