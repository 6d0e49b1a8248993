"""A WAV whose sizes were never filled in is read whole; one that lost its end is refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from mmscale.config import MediaConfig
from mmscale.data.index.probe import probe
from mmscale.data.media.audio import decode_audio
from mmscale.data.media.mended_wav import mended_wav
from mmscale.errors import SampleFault

MEDIA = MediaConfig()


def save(subtype: str = "PCM_16", channels: int = 1) -> bytes:
    wave = np.random.default_rng(0).normal(0, 0.1, (8000, channels))
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 16_000, format="WAV", subtype=subtype)
    return buffer.getvalue()


GOOD = save()
DATA = GOOD.index(b"data")


def sizes(riff: int | None = None, data: int | None = None, of: bytes = GOOD) -> bytes:
    out, at = bytearray(of), of.index(b"data")
    if riff is not None:
        out[4:8] = struct.pack("<I", riff)
    if data is not None:
        out[at + 4 : at + 8] = struct.pack("<I", data)
    return bytes(out)


WHOLE = {
    "neither": sizes(0, 0),
    "the header's own size": sizes(36, 0),
    "data alone": sizes(data=0),
    "RIFF alone": sizes(riff=0),
    "the largest": sizes(0xFFFFFFFF, 0xFFFFFFFF),
    "the largest data": sizes(data=0xFFFFFFFF),
    "the largest signed": sizes(0x7FFFFFFF, 0x7FFFFFFF),
    "no padding": GOOD[:12] + b"LIST\x05\0\0\0hello" + GOOD[12:],
    "no padding, no size": sizes(0, 0, GOOD[:12] + b"LIST\x05\0\0\0hello" + GOOD[12:]),
    "padding": GOOD[:12] + b"LIST\x05\0\0\0hello\0" + GOOD[12:],
    "a chunk behind": GOOD + b"id3 \x10\0\0\0" + b"x" * 16,
    "three bytes behind": GOOD + b"\x01\x02\x03",
}


@pytest.mark.parametrize("name", WHOLE)
def test_read_whole(name: str) -> None:
    assert (decode_audio(WHOLE[name], MEDIA) == decode_audio(GOOD, MEDIA)).all()
    assert probe("audio", WHOLE[name], MEDIA) == (8000, 16_000)


@pytest.mark.parametrize(("subtype", "channels"), [("PCM_24", 1), ("FLOAT", 2), ("ULAW", 1)])
def test_other_samples(subtype: str, channels: int) -> None:
    good = save(subtype, channels)
    assert (decode_audio(sizes(0, 0, good), MEDIA) == decode_audio(good, MEDIA)).all()


def test_what_lost_its_end_is_refused() -> None:
    with pytest.raises(SampleFault, match="cut short"):
        decode_audio(GOOD[:-5000], MEDIA)


def test_no_sound_is_no_sound_and_nothing_else_is_touched() -> None:
    empty = sizes(36, 0)[: DATA + 8]
    with_list = empty + b"LIST\x04\0\0\0abcd"
    for data in (empty, with_list):
        with pytest.raises(SampleFault, match="without samples"):
            decode_audio(data, MEDIA)
    for data in (GOOD, b"", b"RIFF", b"OggS" + GOOD, GOOD[:20], b"RIFF1234WAVE" + b"a" * 7):
        assert mended_wav(data) is data
