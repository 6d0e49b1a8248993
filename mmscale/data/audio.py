"""Encoded sound to a mono waveform at the one rate the model reads."""

from __future__ import annotations

import io

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from mmscale.config import MediaConfig
from mmscale.errors import SampleFault

# Together with media.max_audio_s these bound the memory a header can ask for.
MAX_RATE = 384_000
MAX_CHANNELS = 8

# MP3 decoders drop a fraction of a second that the header counts (encoder delay); a larger gap is a cut file.
_TOLERATED_GAP_S = 0.1
# Far above full scale (1.0), far below where a power spectrum leaves float32.
_LOUDEST = 65_536.0


def decode_audio(data: bytes, media: MediaConfig) -> NDArray[np.float32]:
    """Decode WAV, FLAC, Ogg Vorbis, Opus, MP3 and the like to float32 [n], mono at ``media.sample_rate``.

    Full scale is 1.0. Channels are averaged; resampled by soxr (HQ). ``n`` is exactly
    ``media.audio_samples(frames, rate)`` of the header's ``frames`` and ``rate``.

    Raises `SampleFault` when the header breaks a limit (duration, rate, channels; checked before samples are
    decoded), when the file is cut short, or when a sample is not finite.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            _check_header(sound, media)
            frames, rate = sound.frames, sound.samplerate
            wave = sound.read(frames, dtype="float32", always_2d=True).mean(axis=1, dtype=np.float32)
    except (RuntimeError, OSError, ValueError, TypeError) as error:  # SoundFileError is a RuntimeError
        raise SampleFault(f"undecodable sound: {_reason(error)}") from error
    if frames - len(wave) > _TOLERATED_GAP_S * rate:
        raise SampleFault(f"sound is cut short: {len(wave)} of {frames} samples")
    # The comparison is false for NaN too.
    if not np.abs(wave).max(initial=0.0) <= _LOUDEST:
        raise SampleFault("sound has samples that are not finite or far beyond full scale")
    if rate != media.sample_rate:
        wave = soxr.resample(wave, rate, media.sample_rate, quality="HQ")
    return fit_length(wave, media.audio_samples(frames, rate))


def fit_length(wave: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """Cut float32 [n] at the end, or append silence, to ``samples``."""
    fitted = np.zeros(samples, dtype=np.float32)
    kept = min(samples, len(wave))
    fitted[:kept] = wave[:kept]
    return fitted


def _check_header(sound: soundfile.SoundFile, media: MediaConfig) -> None:
    if sound.frames < 1:
        raise SampleFault("sound without samples")
    if not 1 <= sound.samplerate <= MAX_RATE:
        raise SampleFault(f"sound at {sound.samplerate} Hz; at most {MAX_RATE} is read")
    if sound.channels > MAX_CHANNELS:
        raise SampleFault(f"sound of {sound.channels} channels; at most {MAX_CHANNELS} are read")
    if sound.frames > media.max_audio_s * sound.samplerate:
        seconds = sound.frames / sound.samplerate
        raise SampleFault(f"sound of {seconds:.1f} s is over media.max_audio_s={media.max_audio_s:g}")


def _reason(error: Exception) -> str:
    # soundfile's messages start with the address of the stream, which differs from run to run.
    return getattr(error, "error_string", None) or str(error)[:120]
