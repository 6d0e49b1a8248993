"""Pictures in every colour mode become the same kind of array; broken and oversized ones become
faults.
"""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from hostile_media import jpeg_of_many_passes, jpeg_size, png, webp_canvas
from PIL import Image

from mmscale.config import MediaConfig
from mmscale.data.index.probe import probe
from mmscale.data.media import image as image_module
from mmscale.data.media import image_pixels
from mmscale.data.media.image import Box, decode_image
from mmscale.data.media.jpeg_header import read_jpeg_header
from mmscale.errors import SampleFault, UserError
from mmscale.prf import normal

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
    assert (
        pixels.dtype == np.uint8
        and pixels.shape == (3, 32, 48)
        and pixels.transpose(1, 2, 0).flags.c_contiguous
    )
    assert np.abs(pixels.astype(int) - np.array(expected)[:, None, None]).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_formats(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert corners(decode_image(encode(quarters(), kind, **options), MEDIA)) == [
        RED,
        GREEN,
        BLUE,
        WHITE,
    ]


def test_palette_with_transparency():
    image = plain("P", 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    opaque = decode_image(encode(image), MEDIA)
    assert set(corners(opaque)) == {(200, 0, 0)}
    clear = decode_image(encode(image, transparency=0), MEDIA)
    assert set(corners(clear)) == {WHITE}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "GIF"])
def test_transparency_shows_white_in_every_format_that_has_it(kind):
    pixels = np.zeros((64, 96, 4), np.uint8)
    pixels[:] = (255, 0, 0, 255)
    pixels[:32, :48, 3] = 0
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(pixels), kind, **options)
    assert corners(decode_image(data, MEDIA)) == [WHITE, RED, RED, RED]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_become_8(kind):
    grey = np.repeat(np.array([0, 128, 257 * 90, 65_535], np.uint16), 24)
    data = encode(Image.fromarray(np.tile(grey, (64, 1))), kind)
    decoded = decode_image(data, MEDIA)[0, 16, 5::12]
    assert np.abs(decoded.astype(int) - [0, 0, 90, 255]).max() <= 1


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


UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(picture: Image.Image, orientation: int, kind: str, **options) -> bytes:
    """``picture`` stored in such a way that the EXIF orientation makes it upright again."""
    stored = picture.transpose(UNDO[orientation]) if orientation in UNDO else picture
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(stored, kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation(orientation, kind):
    pixels = decode_image(turned(quarters(), orientation, kind), MEDIA)
    assert pixels.shape == (3, 32, 48) and pixels.transpose(1, 2, 0).flags.c_contiguous
    for colour, expected in zip(corners(pixels), [RED, GREEN, BLUE, WHITE], strict=True):
        assert np.abs(np.array(colour) - expected).max() < 12


@pytest.mark.parametrize(
    ("xmp", "exif", "expected"),
    [
        (b'<x tiff:Orientation="3"/>', None, 3),
        (b"<tiff:Orientation>6</tiff:Orientation>", None, 6),
        (b'<x tiff:Orientation="3"/>', 6, 6),  # Exif goes first
        (b'<x xmp:Rating="5"/>', None, 1),
        (b'<x xmp:Rating="5"/>', 6, 6),
    ],
)
def test_xmp_may_turn_a_picture(xmp, exif, expected):
    """A block of XMP without an orientation leaves a JPEG an ordinary one, which most with such a
    block are.
    """
    upright = decode_image(turned(quarters(), 1, "JPEG", quality=95), MEDIA)
    stored = quarters().transpose(UNDO[expected]) if expected in UNDO else quarters()
    tags = Image.Exif()
    if exif is not None:
        tags[0x0112] = exif
    data = encode(stored, "JPEG", quality=95, xmp=xmp, exif=tags)
    assert (read_jpeg_header(data) is not None) == (b"Orientation" not in xmp)
    assert np.abs(decode_image(data, MEDIA).astype(int) - upright).max() <= 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_crop_is_of_the_upright_picture(orientation):
    noise = Image.fromarray(
        (normal(1, 60 * 90 * 3).reshape(60, 90, 3) * 50 + 128).clip(0, 255).astype(np.uint8)
    )
    seen = []

    def crop(height, width, aspect):
        seen.append((height, width, aspect))
        return Box(top=7, left=11, height=32, width=48)

    pixels = decode_image(turned(noise, orientation, "PNG"), MEDIA, crop)
    assert seen == [(60, 90, 1.5)]
    # As large as the result, so nothing is resized.
    assert np.array_equal(pixels, np.asarray(noise)[7:39, 11:59].transpose(2, 0, 1))


def test_crop_of_a_jpeg_is_the_part_of_the_full_decode():
    picture = photograph(480, 640)
    data = encode(picture, "JPEG", quality=95)
    full = Image.open(io.BytesIO(data)).convert("RGB")
    for box in (
        Box(0, 0, 480, 640),
        Box(100, 200, 300, 400),
        Box(17, 33, 65, 99),
        Box(479, 639, 1, 1),
    ):
        part = full.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        expected = np.asarray(part.resize((48, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert psnr(decode_image(data, MEDIA, lambda *_, box=box: box), expected) > 34, box


def test_jpegs_are_never_decoded_below_the_size_that_is_needed(monkeypatch):
    shapes = []

    def spy(*arguments, **options):
        shapes.append(decode_jpeg(*arguments, **options).shape)
        return decode_jpeg(*arguments, **options)

    decode_jpeg = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    data = encode(photograph(600, 801), "JPEG")
    scales = set()
    for height, width in [
        (600, 801),
        (300, 400),
        (150, 801),
        (600, 97),
        (64, 96),
        (63, 95),
        (10, 10),
    ]:
        decode_image(data, MEDIA, lambda *_, part=(height, width): Box(0, 0, *part))
        decoded = shapes[-1]
        scales.add(decoded[0])
        full = decoded[:2] == (600, 801)
        assert full or (decoded[0] * height / 600 >= 32 and decoded[1] * width / 801 >= 48)
    assert len(scales) > 2


def photograph(height: int, width: int) -> Image.Image:
    """Smooth shapes with edges and a little noise, as photographs have."""
    y, x = np.mgrid[0:height, 0:width] / 40
    shapes = np.stack(
        [np.sin(x + y * y / 9), np.cos(y * 1.3 - x / 3), np.sign(np.sin(x / 2) * np.cos(y / 2))], -1
    )
    noise = normal(2, height * width * 3).reshape(height, width, 3)
    return Image.fromarray((shapes * 90 + 128 + 4 * noise).clip(0, 255).astype(np.uint8))


def psnr(decoded: np.ndarray, expected: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB."""
    error = np.mean((decoded.astype(float) - expected) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


@pytest.mark.parametrize(
    "width, height", [(640, 480), (480, 640), (100, 1000), (17, 5), (2000, 100)]
)
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_dynamic_resolution_gives_the_planned_grid(width, height, orientation, kind):
    media = MediaConfig(image_patch=16, max_image_tokens=40)
    data = turned(photograph(height, width), orientation, kind)
    stored_width, stored_height = probe("image", data, media)
    planned = media.image_grid(stored_height, stored_width)
    rows, columns = media.image_grid(height, width)
    assert rows * columns == planned[0] * planned[1] <= 40
    for crop in (None, lambda *_: Box(0, 0, 5, 5)):
        assert decode_image(data, media, crop).shape == (3, rows * 16, columns * 16)


@pytest.mark.parametrize(
    "factors", [(0x21, 0x11, 0x12), (0x31, 0x11, 0x11), (0x22, 0x12, 0x21), (0x24, 0x11, 0x11)]
)
def test_jpegs_with_colours_of_any_resolution(factors):
    """The same as Pillow's, whatever a picture looks like whose header names the wrong layout."""
    raw = bytearray(encode(plain("RGB", (200, 30, 60)), "JPEG", subsampling=0))
    frame = raw.index(b"\xff\xc0")
    for component, factor in enumerate(factors):
        raw[frame + 11 + 3 * component] = factor
    data = bytes(raw)
    full = Image.open(io.BytesIO(data)).convert("RGB").resize((48, 32), Image.Resampling.BILINEAR)
    assert psnr(decode_image(data, MEDIA), np.asarray(full).transpose(2, 0, 1)) > 34


def test_threads_do_not_share_the_memory_they_decode_into():
    files = [encode(photograph(480, 640 + 16 * n), "JPEG") for n in range(4)]
    expected = [decode_image(data, MEDIA).tobytes() for data in files] * 40
    with ThreadPoolExecutor(2) as pool:
        assert (
            list(pool.map(lambda data: decode_image(data, MEDIA).tobytes(), files * 40)) == expected
        )


def test_want_of_memory_is_no_fault_of_the_picture(monkeypatch):
    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr(image_module, "rgb_pixels", refuse)
    with pytest.raises(
        UserError, match=r"decoding a picture: this process has no memory left; lower data\.workers"
    ):
        decode_image(encode(quarters()), MEDIA)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "I;16", "1", "LA"])
def test_strips_and_squares_of_a_large_picture(mode, monkeypatch):
    """Strips change nothing; averages over squares change what the filter would have averaged
    anyway.
    """
    grey = np.asarray(photograph(301, 413).convert("L"))
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode in ("RGBA", "LA"):
        picture = Image.fromarray(grey)
        picture.putalpha(Image.fromarray(grey[::-1].copy()))
        picture = picture.convert(mode)
    else:
        picture = photograph(301, 413).convert(mode)
    data = encode(picture)
    whole = decode_image(data, MEDIA)
    monkeypatch.setattr(image_pixels, "_STRIP_PIXELS", 413 * 7)
    assert np.array_equal(decode_image(data, MEDIA), whole)
    monkeypatch.setattr(image_pixels, "_LARGE_PIXELS", 1)
    assert psnr(decode_image(data, MEDIA), whole) > 34


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


@pytest.mark.parametrize("size", [(480, 640), (481, 643), (1200, 900)])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2, "quality": 60}]
)
def test_jpeg_agrees_with_the_full_decode(size, options):
    data = encode(photograph(*size), "JPEG", **options)
    full = Image.open(io.BytesIO(data)).convert("RGB").resize((48, 32), Image.Resampling.BILINEAR)
    assert psnr(decode_image(data, MEDIA), np.asarray(full).transpose(2, 0, 1)) > 34


def test_grey_and_cmyk_jpegs():
    assert set(corners(decode_image(encode(plain("L", 77), "JPEG"), MEDIA))) == {(77, 77, 77)}
    decoded = decode_image(encode(plain("CMYK", (0, 255, 255, 0), (500, 400)), "JPEG"), MEDIA)
    assert decoded[0].min() > 200 and decoded[1:].max() < 60


def test_photographs(real_data):
    files = sorted((real_data / "captions").glob("*/*.jpg"))
    media = MediaConfig(image_height=96, image_width=96)
    ratios = []
    for file in files[:12]:
        full = Image.open(file).convert("RGB").resize((96, 96), Image.Resampling.BILINEAR)
        ratios.append(
            psnr(decode_image(file.read_bytes(), media), np.asarray(full).transpose(2, 0, 1))
        )
    assert min(ratios) > 30 and np.median(ratios) > 36


def test_one_pixel_is_enlarged():
    assert set(corners(decode_image(encode(plain("RGB", GREEN, (1, 1))), MEDIA))) == {GREEN}


def test_pixel_limit_is_read_from_the_header():
    limited = MediaConfig(image_height=32, image_width=48, max_image_pixels=100)
    # Nothing follows the header: whoever decoded first would complain about something else.
    header_only = encode(plain("RGB", RED))[:60]
    with pytest.raises(SampleFault, match="96x64 pixels is over"):
        decode_image(header_only, limited)


def test_our_pixel_limit_is_the_one_that_counts(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("PNG", "JPEG", "BMP"):
        assert decode_image(encode(quarters(), kind), MEDIA).shape == (3, 32, 48)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_limits_hold_where_the_header_lies():
    with pytest.raises(SampleFault, match="65500x65500 pixels is over"):
        decode_image(jpeg_size(65_500, 65_500), MEDIA)
    with pytest.raises(SampleFault, match="16383x16383 pixels is over"):
        decode_image(webp_canvas(16_383, 16_383), MEDIA)
    with pytest.raises(SampleFault, match="passes over the picture"):
        decode_image(jpeg_of_many_passes(200), MEDIA)


def sixteen_bit_png(
    values: tuple[int, ...], colours: int, depth: int = 16, transparent: tuple[int, ...] = ()
) -> bytes:
    """8x8 pixels of one colour, with a tRNS chunk if ``transparent``."""
    if depth == 16:
        row = struct.pack(f">{len(values)}H", *values) * 8
    else:
        row = bytes([sum(values[0] << shift for shift in range(0, 8, depth))]) * depth
    chunks = [(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))] if transparent else []
    return png(
        8, 8, *chunks, (b"IDAT", zlib.compress((b"\0" + row) * 8)), depth=depth, colours=colours
    )


@pytest.mark.parametrize(
    "data, expected",
    [
        (sixteen_bit_png((0x1234,), 0), (18, 18, 18)),
        (sixteen_bit_png((0x1234,), 0, transparent=(0x1234,)), WHITE),
        (sixteen_bit_png((0x1234,), 0, transparent=(0x1235,)), (18, 18, 18)),
        (sixteen_bit_png((0x1234, 0x5678, 0x9ABC), 2), (0x12, 0x56, 0x9A)),
        (sixteen_bit_png((0x1234, 0x5678, 0x9ABC), 2, transparent=(0x1234, 0x5678, 0x9ABC)), WHITE),
        (
            sixteen_bit_png((0x1234, 0x5678, 0x9ABC), 2, transparent=(0x3434, 0x7878, 0xBCBC)),
            (0x12, 0x56, 0x9A),
        ),
        (sixteen_bit_png((0x1234, 0x5678, 0x9ABC, 0), 6), WHITE),
        (sixteen_bit_png((0x1234, 0xFFFF), 4), (18, 18, 18)),
        (sixteen_bit_png((2,), 0, depth=2), (170, 170, 170)),
        (sixteen_bit_png((2,), 0, depth=2, transparent=(2,)), WHITE),
        (sixteen_bit_png((3,), 0, depth=4, transparent=(3,)), WHITE),
        (sixteen_bit_png((3,), 0, depth=4, transparent=(4,)), (51, 51, 51)),
    ],
)
def test_png_depths_and_transparent_colours(data, expected):
    assert set(corners(decode_image(data, MediaConfig(image_height=16, image_width=16)))) == {
        expected
    }


def test_extreme_shapes_are_resized_as_by_pillow():
    for shape in [(1, 20_000), (20_000, 1), (3, 5_000)]:
        grey = (
            (normal(3, shape[0] * shape[1]).reshape(shape) * 60 + 128).clip(0, 255).astype(np.uint8)
        )
        picture = Image.fromarray(grey)
        expected = np.asarray(
            picture.convert("RGB").resize((48, 32), Image.Resampling.BILINEAR)
        ).transpose(2, 0, 1)
        assert np.abs(decode_image(encode(picture), MEDIA).astype(int) - expected).max() <= 2


def jpeg_with(at_marker: bytes, inserted: bytes) -> bytes:
    data = encode(photograph(64, 96), "JPEG")
    at = data.rindex(at_marker)
    return data[:at] + inserted + data[at:]


def test_stray_bytes_in_a_jpeg_are_skipped():
    whole = decode_image(encode(photograph(64, 96), "JPEG"), MEDIA)
    for marker in (b"\xff\xda", b"\xff\xd9"):
        assert psnr(decode_image(jpeg_with(marker, bytes(3)), MEDIA), whole) > 40
    assert np.array_equal(
        decode_image(encode(photograph(64, 96), "JPEG") + b"appended", MEDIA), whole
    )


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["cut", "cut and ended"])
@pytest.mark.parametrize("share", [0.4, 0.9, 0.99])
def test_a_truncated_jpeg_is_a_fault(progressive, end, share):
    data = encode(photograph(480, 640), "JPEG", progressive=progressive)
    with pytest.raises(SampleFault, match=r"[Pp]remature end"):
        decode_image(data[: int(len(data) * share)] + end, MEDIA)


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


def test_a_png_damaged_in_its_pixels_is_refused() -> None:
    """Pillow reports it when the pixels are first read, which looking for Exif does."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = buffer.getvalue()
    media = MediaConfig(image_height=64, image_width=64, image_patch=8)
    assert (decode_image(data, media).transpose(1, 2, 0) == pixels).all()
    for at in range(100, len(data) - 200, 997):
        with pytest.raises(SampleFault, match="broken picture"):
            decode_image(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :], media)
