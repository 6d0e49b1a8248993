"""What libjpeg warns of though no pixel is lost is read, with the clean file's pixels; damage
beside it is still refused.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from mmscale.config import MediaConfig
from mmscale.data.index.probe import probe
from mmscale.data.media.image import decode_image
from mmscale.data.media.mended_jpeg import mended_jpeg
from mmscale.errors import SampleFault

MEDIA = MediaConfig(image_height=48, image_width=64, image_patch=8)


def save(**options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((64, 48)).save(buffer, "JPEG", quality=85, **options)
    return buffer.getvalue()


GOOD = save()
SCAN = GOOD.index(b"\xff\xda")
PARAMETERS = SCAN + 5 + 2 * GOOD[SCAN + 4]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def put(at: int, new: bytes, over: int = 0) -> bytes:
    return GOOD[:at] + new + GOOD[at + over :]


ICC = b"ICC_PROFILE\0"
WHOLE = {
    "spectral selection of nothing": put(PARAMETERS, bytes([0, 0, 0]), 3),
    "spectral selection of a part": put(PARAMETERS, bytes([1, 63, 0]), 3),
    "successive approximation": put(PARAMETERS, bytes([0, 63, 0x11]), 3),
    "JFIF 3.01": put(11, b"\x03\x01", 2),
    "JFIF 0.00": put(11, b"\0\0", 2),
    "a profile's number beyond their count": put(20, segment(0xE2, ICC + b"\x01\x03abc")),
    "a profile twice": put(20, 2 * segment(0xE2, ICC + b"\x01\x01abc")),
    "a profile without a number": put(20, segment(0xE2, ICC + b"\0\0abc")),
    "Exif that is none": put(20, segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")),
    "bytes before the scan": put(SCAN, b"\x01\x02\x03"),
    "bytes before a table": put(20, b"\0\x7f"),
    "two of it": put(20, segment(0xE2, ICC + b"\0\0abc"))[:11]
    + b"\x07\x07"
    + put(20, segment(0xE2, ICC + b"\0\0abc"))[13:],
    "bytes after the end": GOOD + b"more" * 9,
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_pictures_are_read(name: str) -> None:
    data = WHOLE[name]
    assert (decode_image(data, MEDIA) == decode_image(GOOD, MEDIA)).all()
    assert probe("image", data, MEDIA) == (64, 48)


@pytest.mark.parametrize("name", WHOLE)
def test_damage_beside_it_is_refused(name: str) -> None:
    data = WHOLE[name]
    end = data.rindex(b"\xff\xd9") if name != "bytes after the end" else data.index(b"\xff\xd9")
    for damaged in (data[: end - 300], data[: end - 200] + b"\xff\xd3" + data[end - 198 :]):
        with pytest.raises(SampleFault, match="broken picture"):
            decode_image(damaged, MEDIA)


def test_half_size_and_grey_are_mended_too() -> None:
    half = MediaConfig(image_height=24, image_width=32, image_patch=8)
    data = WHOLE["JFIF 3.01"]
    assert (decode_image(data, half) == decode_image(GOOD, half)).all()
    buffer = io.BytesIO()
    Image.open(io.BytesIO(GOOD)).convert("L").save(buffer, "JPEG")
    grey = buffer.getvalue()
    odd = grey[:11] + b"\x09\x09" + grey[13:]
    assert (decode_image(odd, MEDIA) == decode_image(grey, MEDIA)).all()


def test_colours_are_kept_and_what_cannot_be_followed_is_not_touched() -> None:
    adobe = segment(0xEE, b"Adobe\0d\0\0\0\0\0")  # 0: stored as red, green and blue
    stored = put(20, adobe + segment(0xFE, b"comment"))
    mended = mended_jpeg(stored)
    assert mended is not None and adobe in mended and b"comment" not in mended
    assert (simplejpeg.decode_jpeg(mended) == simplejpeg.decode_jpeg(stored)).all()
    for broken in (b"", b"\xff\xd8", GOOD[:SCAN], b"\xff\xd8\xff\xe0\0\x01", b"GIF89a" + GOOD):
        assert mended_jpeg(broken) is None
