"""Formats by their first bytes: every format that is read is known, nothing else is."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmscale.data.index.probe import kind_of
from mmscale.data.media.format import ending_of


@pytest.mark.parametrize(
    ("format", "ending"),
    [
        ("PNG", "png"),
        ("JPEG", "jpg"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
    ],
)
def test_pictures(format: str, ending: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3)).save(buffer, format)
    assert ending_of(buffer.getvalue()) == ending and kind_of(ending) == "image"


@pytest.mark.parametrize(
    ("format", "subtype", "ending"),
    [
        ("WAV", "PCM_16", "wav"),
        ("WAVEX", "PCM_16", "wav"),
        ("RF64", "PCM_16", "wav"),
        ("FLAC", "PCM_16", "flac"),
        ("OGG", "VORBIS", "ogg"),
        ("OGG", "OPUS", "opus"),
        ("MP3", "MPEG_LAYER_III", "mp3"),
    ],
)
def test_sound(format: str, subtype: str, ending: str) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000)
    soundfile.write(buffer, noise, 16_000, format=format, subtype=subtype)
    data = buffer.getvalue()
    assert ending_of(data) == ending and kind_of(ending) == "audio"
    tag = b"ID3\4\0\0" + bytes([0, 0, 1, 2]) + bytes(130)
    if ending in ("mp3", "flac"):
        assert ending_of(tag + data) == ending


@pytest.mark.parametrize(
    "data",
    [b"", b"BM", b"BMs are letters too", b"RIFF1234AVI ", b"<svg/>", b"%PDF-1.4", b"\x80\4pickle",
     b"\xff\xd8", b"\xff\xf1\x50\x80", b"\xff\xff\xff\xff", b"II", b"PK\3\4"],
)  # fmt: skip
def test_what_is_none(data: bytes) -> None:
    assert ending_of(data) is None


@settings(deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=64))
def test_any_bytes_have_an_answer(data: bytes) -> None:
    ending = ending_of(data)
    assert ending is None or kind_of(ending) in ("image", "audio")
