"""Encoded pictures to pixels of the size the model reads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile

from mmscale.config import MediaConfig
from mmscale.data.media.image_file import check_size, open_picture, orientation, picture_faults
from mmscale.data.media.image_pixels import rgb_pixels
from mmscale.data.media.jpeg_header import JpegHeader, read_jpeg_header
from mmscale.data.media.mended_jpeg import MENDABLE, mended_jpeg
from mmscale.errors import SampleFault

# How stored pixels become upright, by EXIF orientation: rows and columns exchanged first, then the
# columns mirrored, then the rows.
_TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
# libjpeg's scales between 1 and 1/2 take as long as the full decode and are worse.
_LEAST_JPEG_REDUCTION = 2
# Decoded pictures of up to so many bytes lie in memory that stays.
_MOST_SCRATCH = 48 << 20
# What takes nothing from the picture: bytes between scans, which every reader skips, colours of a
# resolution that libjpeg-turbo's short interface has no name for, and lossless JPEG.
_HARMLESS = (
    "extraneous bytes before marker",
    "determine subsampling level",
    "Unsupported color conversion request",
)


class _Scratch(threading.local):
    """Where a thread's decoded pictures lie until they are resized: memory that stays is in the
    processor's cache.
    """

    def __init__(self) -> None:
        self._memory = bytearray()

    def of(self, size: int) -> bytearray | None:
        """At least ``size`` bytes; None where that is more than should stay."""
        if size > _MOST_SCRATCH:
            return None
        if len(self._memory) < size:
            self._memory = bytearray(size)
        return self._memory


_scratch = _Scratch()


class Box(NamedTuple):
    """A rectangle of an upright picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int


# (height, width) of an upright picture and width / height of the result → the part that is kept.
Crop = Callable[[int, int, float], Box]


def decode_image(data: bytes, media: MediaConfig, crop: Crop | None = None) -> NDArray[np.uint8]:
    """Decode ``data`` to upright RGB, uint8 [3, rows * image_patch, columns * image_patch]; in
    memory the colours of a pixel lie side by side.

    ``rows, columns`` is ``media.image_grid`` of the whole upright picture, with ``crop`` too. The
    kept part is resized with an antialiased bilinear filter; a JPEG is decoded at a reduced scale
    where that leaves it no smaller than the result (docs/formats.md says what that changes). The
    EXIF orientation is applied, transparency shows white, 16 bits become 8, of an animation the
    first frame is taken, colour profiles are ignored.

    Raises `SampleFault` when the picture is larger than ``media.max_image_pixels`` (known from its
    header, before pixels are decoded) or cannot be decoded in full.
    """
    header, picture = read_jpeg_header(data), None
    if header is None:
        picture = open_picture(data, media)
        header = JpegHeader(picture.height, picture.width, orientation(picture))
    else:
        check_size(header.width, header.height, media)
    exchange, mirror_columns, mirror_rows = _TURNS[header.orientation]
    height, width = (header.width, header.height) if exchange else (header.height, header.width)
    rows, columns = media.image_grid(height, width)
    size = (rows * media.image_patch, columns * media.image_patch)
    part = Box(0, 0, height, width) if crop is None else crop(height, width, size[1] / size[0])
    assert (
        0 <= part.top < part.top + part.height <= height
        and 0 <= part.left < part.left + part.width <= width
    )
    # From here on in stored pixels: the small result is turned, not the picture.
    if mirror_columns:
        part = part._replace(left=width - part.left - part.width)
    if mirror_rows:
        part = part._replace(top=height - part.top - part.height)
    if exchange:
        part, size = Box(part.left, part.top, part.width, part.height), size[::-1]
    with picture_faults():
        pixels = _decode_part(
            data=data, media=media, header=header, picture=picture, part=part, size=size
        )
    pixels = _resize(pixels, size)
    if exchange:
        pixels = pixels.transpose(1, 0, 2)
    if mirror_columns:
        pixels = pixels[:, ::-1]
    if mirror_rows:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels).transpose(2, 0, 1)


def _decode_part(
    *,
    data: bytes,
    media: MediaConfig,
    header: JpegHeader,
    picture: ImageFile | None,
    part: Box,
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """The ``part`` of the stored picture, RGB uint8 [h, w, 3], in full or at a scale that suits
    ``size``.

    ``picture`` is None for an ordinary JPEG, of which the header has all.
    """
    whole_height, whole_width = header.height, header.width
    # What the whole picture must have so that the part is no smaller than the result; rounded up.
    least = needed = (
        -(-size[0] * whole_height // part.height),
        -(-size[1] * whole_width // part.width),
    )
    half = -(-whole_height // 2), -(-whole_width // 2)
    if half[0] >= least[0] and half[1] >= least[1]:
        # Halving is as good a filter as ours. Beyond that libjpeg all but averages squares, so the
        # last factor of two is left to us.
        least = min(half[0], 2 * least[0]), min(half[1], 2 * least[1])
    pixels = None
    if picture is None or picture.format == "JPEG":
        pixels = _decode_jpeg(data, header, least, ordinary=picture is None)
    if pixels is None:
        pixels = rgb_pixels(data, picture or open_picture(data, media), needed)
    # Where the part's edges lie at this scale, to the nearest pixel.
    height, width = pixels.shape[:2]
    top, bottom = (
        round(edge * height / whole_height) for edge in (part.top, part.top + part.height)
    )
    left, right = (
        round(edge * width / whole_width) for edge in (part.left, part.left + part.width)
    )
    return pixels[top:bottom, left:right]


def _decode_jpeg(
    data: bytes, header: JpegHeader, least: tuple[int, int], ordinary: bool, mended: bool = False
) -> NDArray[np.uint8] | None:
    """RGB uint8 [h, w, 3] by libjpeg-turbo; None for what only Pillow reads or converts.

    The pixels lie in memory that the thread's next call uses again. What libjpeg warns of though it
    takes nothing from the picture is mended first (`mended_jpeg`). Any other complaint is a
    `SampleFault`: it would fill what it lacks with grey.
    """
    try:
        if not ordinary:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if (height, width) != (header.height, header.width):
                raise SampleFault("JPEG with more than one size in its header")
            if colours in ("CMYK", "YCCK"):
                return None
        return simplejpeg.decode_jpeg(
            data,
            "RGB",
            min_height=least[0],
            min_width=least[1],
            min_factor=_LEAST_JPEG_REDUCTION,
            buffer=_scratch.of(3 * header.height * header.width),
        )
    except ValueError as error:
        said = str(error)
        if not mended and any(complaint in said for complaint in MENDABLE):
            better = mended_jpeg(data)
            if better is not None:
                return _decode_jpeg(better, header, least, ordinary, mended=True)
        if any(complaint in said for complaint in _HARMLESS):
            return None
        raise


def _resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """[h, w, 3] → [*size, 3]. PyTorch's kernel agrees with Pillow's to one level and takes a fifth
    of its time.
    """
    if pixels.shape[:2] == size:
        return pixels.copy()  # never the decoder's own memory
    resized = torch.empty(1, *size, 3, dtype=torch.uint8)
    # What `functional.interpolate` calls, but for the memory: it would take the colours apart, for
    # half of the time.
    torch.ops.aten._upsample_bilinear2d_aa.out(
        torch.from_numpy(pixels).permute(2, 0, 1)[None],
        size,
        False,
        out=resized.permute(0, 3, 1, 2),
    )
    return resized[0].numpy()
