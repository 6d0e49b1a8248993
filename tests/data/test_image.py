"""Pictures in every colour mode become the same kind of array; broken and oversized ones become faults."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mmscale.config import MediaConfig
from mmscale.data.image import decode_image
from mmscale.errors import SampleFault

MEDIA = MediaConfig(image_height=32, image_width=48, image_patch=16)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def plain(mode: str, colour, size=(96, 64)) -> Image.Image:
    return Image.new(mode, size, colour)


def quarters() -> Image.Image:
    """64x96 with red, green, blue and white quarters, read left to right, top to bottom."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :48], pixels[:32, 48:] = (255, 0, 0), (0, 255, 0)
    pixels[32:, :48], pixels[32:, 48:] = (0, 0, 255), (255, 255, 255)
    return Image.fromarray(pixels)


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """Colours near the corners, read left to right, top to bottom."""
    return [tuple(int(v) for v in pixels[:, y, x]) for y in (2, -3) for x in (2, -3)]


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (40, 255), (40, 40, 40)),
        ("LA", (40, 0), (255, 255, 255)),
    ],
)
def test_colour_modes(mode, colour, expected):
    pixels = decode_image(encode(plain(mode, colour)), MEDIA)
    assert pixels.dtype == np.uint8 and pixels.shape == (3, 32, 48) and pixels.flags.c_contiguous
    assert np.abs(pixels.astype(int) - np.array(expected)[:, None, None]).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_formats(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert corners(decode_image(encode(quarters(), kind, **options), MEDIA)) == [RED, GREEN, BLUE, WHITE]


def test_palette_with_transparency():
    image = plain("P", 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    opaque = decode_image(encode(image), MEDIA)
    assert set(corners(opaque)) == {(200, 0, 0)}
    clear = decode_image(encode(image, transparency=0), MEDIA)
    assert set(corners(clear)) == {WHITE}


def test_cmyk_jpeg():
    pixels = decode_image(encode(plain("CMYK", (0, 255, 255, 0)), "JPEG"), MEDIA)
    assert pixels[0].min() > 200 and pixels[1:].max() < 60


def test_transparent_colour_does_not_bleed_into_its_neighbours():
    pixels = np.zeros((64, 96, 4), np.uint8)
    pixels[..., 0] = 255  # red under full transparency
    pixels[::2, :, :] = (0, 0, 255, 255)
    decoded = decode_image(encode(Image.fromarray(pixels)), MEDIA)
    # Blue and white in equal parts; no red beyond what white holds.
    assert np.abs(decoded[0].astype(int) - decoded[1]).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation(orientation, kind):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quarters().transpose(undo[orientation]) if orientation in undo else quarters()
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode_image(encode(stored, kind, exif=exif), MEDIA)
    assert pixels.shape == (3, 32, 48)
    for found, expected in zip(corners(pixels), [RED, GREEN, BLUE, WHITE], strict=True):
        assert np.abs(np.array(found) - expected).max() < 12


def test_broken_exif_spoils_nothing():
    data = encode(quarters(), "PNG", exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff")
    assert corners(decode_image(data, MEDIA)) == [RED, GREEN, BLUE, WHITE]


def test_first_frame_of_an_animation():
    data = encode(plain("RGB", RED), "GIF", save_all=True, append_images=[plain("RGB", BLUE)])
    assert set(corners(decode_image(data, MEDIA))) == {RED}


def test_resize_is_antialiased():
    checker = (np.indices((320, 480)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = decode_image(encode(Image.fromarray(checker)), MEDIA)
    assert np.abs(pixels.astype(int) - 127).max() <= 2


def test_jpeg_fast_path_agrees_with_the_full_decode():
    ramp_y, ramp_x = np.mgrid[0:640, 0:960]
    pixels = np.stack([ramp_x % 256, ramp_y % 256, (ramp_x + ramp_y) // 7 % 256], axis=-1) // 4 * 4
    picture = Image.fromarray(pixels.astype(np.uint8)).resize((960, 640))
    data = encode(picture, "JPEG", quality=95)
    full = Image.open(io.BytesIO(data)).convert("RGB").resize((48, 32), Image.Resampling.BILINEAR)
    difference = decode_image(data, MEDIA).astype(int) - np.asarray(full).transpose(2, 0, 1)
    assert np.abs(difference).mean() < 3


def test_one_pixel_is_enlarged():
    assert set(corners(decode_image(encode(plain("RGB", GREEN, (1, 1))), MEDIA))) == {GREEN}


def test_pixel_limit_is_read_from_the_header():
    limited = MediaConfig(image_height=32, image_width=48, max_image_pixels=100)
    # Nothing follows the header: whoever decoded first would complain about something else.
    header_only = encode(plain("RGB", RED))[:60]
    with pytest.raises(SampleFault, match="96x64 pixels is over"):
        decode_image(header_only, limited)


@pytest.mark.parametrize(
    "data",
    [b"", b"not a picture", encode(quarters())[:120], encode(quarters(), "JPEG")[:400]],
    ids=["empty", "text", "cut png", "cut jpeg"],
)
def test_broken_pictures_are_faults(data):
    with pytest.raises(SampleFault) as caught:
        decode_image(data, MEDIA)
    message = str(caught.value)
    assert "\n" not in message and "0x" not in message and len(message) < 200


def test_formats_that_start_programs_are_refused():
    with pytest.raises(SampleFault, match="supported format"):
        decode_image(encode(quarters(), "EPS"), MEDIA)
    with pytest.raises(SampleFault, match="floating-point"):
        decode_image(encode(plain("F", 0.5), "TIFF"), MEDIA)
