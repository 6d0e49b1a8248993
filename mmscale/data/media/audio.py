"""Encoded sound to a mono waveform at the one rate the model reads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from mmscale.config import MediaConfig
from mmscale.data.host_error import check_host
from mmscale.data.media.format import ending_of
from mmscale.data.media.forward_sound import ForwardSound
from mmscale.data.media.mended_wav import mended_wav
from mmscale.data.media.mp3_frames import layer3_samples
from mmscale.errors import SampleFault

# Together with media.max_audio_s these bound the memory a header can ask for.
MIN_RATE = 1_000
MAX_RATE = 384_000
MAX_CHANNELS = 8

_OGG = b"OggS"
_ENDINGS = ("wav", "flac", "ogg", "opus", "mp3")
# Samples of all channels that are decoded at a time.
_BLOCK = 1 << 16
# MP3 decoders drop a fraction of a second that the header counts (encoder delay); a larger gap is a
# cut file.
_TOLERATED_GAP_S = 0.1
# Far above full scale (1.0), far below where a power spectrum leaves float32.
_LOUDEST = 65_536.0
# The frame that holds the tags, the encoder's delay and its padding: frames of an MP3 that are no
# sound.
_MP3_SILENT_FRAMES = 4
# What libsndfile says of a FLAC that was written into a pipe is the largest number it has.
_UNKNOWN_LENGTH = 1 << 62
# Programs that write WAV into a pipe cannot know its size, and put a number near one of the two
# limits there.
_UNKNOWN_RIFF_SIZE = 0x7FFF_0000
# Writers disagree about what the size counts: the header, a byte of padding.
_TOLERATED_GAP_BYTES = 64


def decode_audio(data: bytes, media: MediaConfig) -> NDArray[np.float32]:
    """Decode WAV, FLAC, Ogg Vorbis, Opus and MP3 to float32 [n], mono at ``media.sample_rate``.

    Full scale is 1.0. Channels are averaged; resampled by soxr (HQ, a polyphase filter). ``n`` is
    exactly ``media.audio_samples(frames, rate)`` of the header's ``frames`` and ``rate``.

    Raises `SampleFault` for what `open_sound` does, when the file is cut short, or when a sample is
    not finite.
    """
    with open_sound(data, media) as sound:
        frames, rate = sound.frames, sound.samplerate
        wave = np.concatenate(
            [block.mean(axis=1, dtype=np.float32) for block in _blocks(sound)]
            or [np.zeros(0, np.float32)]
        )
    if frames - len(wave) > _TOLERATED_GAP_S * rate:
        raise SampleFault(f"sound is cut short: {len(wave)} of {frames} samples")
    # The comparison is false for NaN too.
    if not np.abs(wave).max(initial=0.0) <= _LOUDEST:
        raise SampleFault("sound has samples that are not finite or far beyond full scale")
    if rate != media.sample_rate:
        wave = soxr.resample(wave, rate, media.sample_rate, quality="HQ")
    return fit_length(wave, media.audio_samples(frames, rate))


@contextmanager
def open_sound(data: bytes, media: MediaConfig) -> Iterator[soundfile.SoundFile]:
    """The sound in ``data``, of which only the header has been read.

    Raises `SampleFault`, also for whatever goes wrong within the block: not one of the formats,
    broken, or a header that breaks a limit (duration, rate, channels).
    """
    if ending_of(data) not in _ENDINGS:
        raise SampleFault("not a sound in a supported format (wav, flac, ogg, opus, mp3)")
    if data.startswith(b"RIFF"):
        size = int.from_bytes(data[4:8], "little") + 8
        # libsndfile would read a shorter clip.
        if size < _UNKNOWN_RIFF_SIZE and size - len(data) > _TOLERATED_GAP_BYTES:
            raise SampleFault(f"sound is cut short: {len(data)} of {size} bytes")
        data = mended_wav(data)
    if data.startswith(_OGG) and not _ends_stream(data):
        raise SampleFault("sound is cut short: an Ogg file without its last page")
    try:
        with ForwardSound(io.BytesIO(data)) as sound:
            _check_header(sound, media)
            if sound.format == "MP3":
                _check_mp3_length(sound, data)
            yield sound
    except (RuntimeError, OSError, ValueError, TypeError, MemoryError) as error:
        # SoundFileError is a RuntimeError.
        check_host(error, "decoding a sound")
        # soundfile's own text starts with the address of the stream, which differs from run to run.
        reason = getattr(error, "error_string", None) or type(error).__name__
        raise SampleFault(f"broken sound: {reason}") from error


def _ends_stream(data: bytes) -> bool:
    """Whether the last page of an Ogg file ends a stream (RFC 3533, 6: bit 2 of the header type),
    and is whole.
    """
    last = data.rfind(_OGG)
    segments = data[last + 26 : last + 27]
    if not segments or not data[last + 5] & 4:
        return False
    lengths = data[last + 27 : last + 27 + segments[0]]
    return len(lengths) == segments[0] and last + 27 + segments[0] + sum(lengths) <= len(data)


def fit_length(wave: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """Cut float32 [n] at the end, or append silence, to ``samples``."""
    fitted = np.zeros(samples, dtype=np.float32)
    kept = min(samples, len(wave))
    fitted[:kept] = wave[:kept]
    return fitted


def _blocks(sound: soundfile.SoundFile) -> Iterator[NDArray[np.float32]]:
    """float32 [n, channels] up to the header's end; memory for all channels is only ever needed for
    one block.
    """
    left = sound.frames
    while left > 0:
        block = sound.read(min(left, _BLOCK // sound.channels), dtype="float32", always_2d=True)
        if not len(block):
            return
        left -= len(block)
        yield block


def _check_header(sound: soundfile.SoundFile, media: MediaConfig) -> None:
    if sound.frames < 1:
        raise SampleFault("sound without samples")
    if sound.frames >= _UNKNOWN_LENGTH:
        raise SampleFault(
            "sound whose header does not report its length (written into a pipe); encode it again"
        )
    if not MIN_RATE <= sound.samplerate <= MAX_RATE:
        raise SampleFault(f"sound at {sound.samplerate} Hz; {MIN_RATE} to {MAX_RATE} are read")
    if not 1 <= sound.channels <= MAX_CHANNELS:
        raise SampleFault(f"sound of {sound.channels} channels; at most {MAX_CHANNELS} are read")
    if sound.frames > media.max_audio_s * sound.samplerate:
        seconds = sound.frames / sound.samplerate
        raise SampleFault(
            f"sound of {seconds:.1f} s is over media.max_audio_s={media.max_audio_s:g}"
        )


def _check_mp3_length(sound: soundfile.SoundFile, data: bytes) -> None:
    frame = 1152 if sound.samplerate >= 32_000 else 576
    counted = layer3_samples(data)
    if counted - sound.frames > _MP3_SILENT_FRAMES * frame:
        raise SampleFault(
            f"MP3 of {counted} samples whose header reports {sound.frames} (variable bit rate "
            "without a Xing header); encode it again"
        )
