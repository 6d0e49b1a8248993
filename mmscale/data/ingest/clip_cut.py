"""A part of a recording as a clip of its own: decoded when it is packed, stored as FLAC.

FLAC keeps 16- and 24-bit sound as it is. What has no such samples (MP3, Vorbis, Opus) becomes 16
bits; 32-bit and floating-point sound becomes 24.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from mmscale.data.host_error import check_host
from mmscale.data.index.probe import ENDINGS
from mmscale.data.media.format import ending_of
from mmscale.data.media.forward_sound import ForwardSound
from mmscale.errors import UserError

# Times in manifests are rounded, and decoders differ about the last samples.
_TOLERATED_GAP_S = 0.1
_HEAD = 64
# Samples of all channels that are held at a time.
_BLOCK = 1 << 16
# Forms of samples that FLAC holds as they are, and those that want all the bits it has.
_EXACT = {"PCM_16": "int16", "PCM_S8": "int16", "PCM_U8": "int16", "PCM_24": "int32"}
_WIDE = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")


@dataclass(frozen=True)
class ClipCut:
    """What a layout puts into the column ``audio`` in place of a path.

    Attributes:
        path: of the recording, as any other path of a medium.
        begin_s: seconds from its start.
        end_s: seconds from its start; None: its end.
    """

    path: str
    begin_s: float
    end_s: float | None = None

    def name(self) -> str:
        """What messages call it."""
        return f"{self.path} from {self.begin_s} s to {_seconds(self.end_s)}"


def cut_sound(file: BinaryIO, cut: ClipCut, max_bytes: int) -> bytes:
    """FLAC of the part of the recording in ``file`` that ``cut`` names, same rate and channels.

    Raises `UserError` that does not name the row or file, which the caller does.
    """
    head = file.read(_HEAD)
    file.seek(0)
    if ending_of(head) not in ENDINGS["audio"]:
        raise UserError(f"not a sound in a format that is read ({', '.join(ENDINGS['audio'])})")
    try:
        with ForwardSound(file) as sound:
            begin, end = _frames(cut, sound.frames, sound.samplerate)
            return _flac(sound, begin, end, max_bytes)
    except (RuntimeError, OSError, TypeError, MemoryError) as error:
        check_host(error, "cutting a sound")
        reason = getattr(error, "error_string", None) or type(error).__name__
        raise UserError(f"broken sound ({reason}); restore the file") from None


def _frames(cut: ClipCut, frames: int, rate: int) -> tuple[int, int]:
    if not math.isfinite(cut.begin_s + (cut.end_s or 0)):
        raise UserError("a part whose times are no finite numbers; correct the times")
    begin = round(cut.begin_s * rate)
    end = frames if cut.end_s is None else round(cut.end_s * rate)
    if not 0 <= begin < end:
        raise UserError(
            f"a part from {cut.begin_s} s to {_seconds(cut.end_s)} holds no sound; correct the "
            "times"
        )
    if begin >= frames or end - frames > _TOLERATED_GAP_S * rate:
        raise UserError(
            f"a part from {cut.begin_s} s to {_seconds(cut.end_s)}, but the recording has "
            f"{frames / rate:g} s; correct the times or restore the file"
        )
    return begin, min(end, frames)


def _flac(sound: soundfile.SoundFile, begin: int, end: int, max_bytes: int) -> bytes:
    subtype = "PCM_24" if sound.subtype in _WIDE else "PCM_16"
    flac = io.BytesIO()
    with soundfile.SoundFile(
        flac, "w", sound.samplerate, sound.channels, format="FLAC", subtype=subtype
    ) as written:
        for block in _blocks(sound, begin, end):
            written.write(block)
            if flac.tell() > max_bytes:
                raise UserError(
                    f"the part is over media.max_file_bytes={max_bytes}; raise the limit or "
                    "shorten it"
                )
    return flac.getvalue()


def _blocks(
    sound: soundfile.SoundFile, begin: int, end: int
) -> Iterator[NDArray[np.int16] | NDArray[np.int32]]:
    """Integer [n, channels] of the frames, all of them."""
    # Bits that a frame of MP3 needs of those before it are lost by a seek; they are at most 511
    # bytes, half a second at 8 kbit/s.
    lead = min(begin, sound.samplerate) if sound.format == "MP3" else 0
    sound.seek(begin - lead)
    sound.read(lead, dtype="float32", always_2d=True)
    left = end - begin
    while left > 0:
        many = min(left, _BLOCK // sound.channels)
        if sound.subtype in _EXACT:
            block = sound.read(many, dtype=_EXACT[sound.subtype], always_2d=True)
        else:
            block = _whole(
                sound.read(many, dtype="float64", always_2d=True), sound.subtype in _WIDE
            )
        if not len(block):
            raise UserError(f"the recording is cut short {left} samples before the part's end")
        left -= len(block)
        yield block


def _whole(block: NDArray[np.float64], wide: bool) -> NDArray[np.int16] | NDArray[np.int32]:
    """Rounded and limited by ourselves: libsndfile wraps what is over full scale around."""
    if not np.isfinite(block).all():
        raise UserError("the part has samples that are not finite; encode the recording again")
    if wide:
        # libsndfile takes the upper 24 bits of 32.
        return np.clip(np.rint(block * 2**23), -(2**23), 2**23 - 1).astype(np.int32) << 8
    return np.clip(np.rint(block * 2**15), -(2**15), 2**15 - 1).astype(np.int16)


def _seconds(end_s: float | None) -> str:
    return "the end" if end_s is None else f"{end_s} s"
