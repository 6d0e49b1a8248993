"""RGB pixels of a picture that Pillow decodes.

A picture is converted a strip at a time: whole copies in other modes, of four bytes a pixel each,
are what would take the memory that `media.max_image_pixels` is there to bound.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from mmscale.errors import SampleFault

_STRIP_PIXELS = 1 << 18
_LARGE_PIXELS = 1 << 24


def rgb_pixels(data: bytes, picture: ImageFile, least: tuple[int, int]) -> NDArray[np.uint8]:
    """The whole ``picture``, opened from ``data``: RGB uint8 [h, w, 3], transparency on white, 16
    bits as 8.

    One of more than 2**24 pixels is averaged over squares, as far as that leaves it twice
    ``least``, (height, width).

    Raises `SampleFault` for pixels that have no defined range.
    """
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PNG"):
        raise SampleFault("picture of floating-point or 32-bit values, which have no defined range")
    if picture.format == "PNG" and not picture.mode.startswith("I"):
        _scale_transparent_colour(data, picture)
    width, height = picture.size
    factor = 1
    if width * height > _LARGE_PIXELS:
        factor = max(1, min(height // (2 * least[0]), width // (2 * least[1])))
    rows = factor * max(1, _STRIP_PIXELS // (width * factor))
    pixels = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    for top in range(0, height, rows):
        strip = _to_rgb(picture.crop((0, top, width, min(top + rows, height))))
        small = np.asarray(strip.reduce(factor) if factor > 1 else strip)
        pixels[top // factor : top // factor + len(small)] = small
    return pixels


def _to_rgb(strip: Image.Image) -> Image.Image:
    if strip.mode.startswith("I"):
        return _grey_of_16_bits(strip)
    if not strip.has_transparency_data:
        return strip.convert("RGB")
    blended = Image.new("RGB", strip.size, "white")
    transparent = strip.convert("RGBA")
    blended.paste(transparent, mask=transparent)
    return blended


def _grey_of_16_bits(strip: Image.Image) -> Image.Image:
    values = np.asarray(strip).astype(np.uint32)
    # v / 257, rounded; Pillow's own conversion clips at 255.
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = strip.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _scale_transparent_colour(data: bytes, picture: ImageFile) -> None:
    """Bring a PNG's one transparent colour from the file's bit depth to the 8 bits of the
    pixels.
    """
    colour, depth = picture.info.get("transparency"), data[24]
    if picture.mode == "L" and isinstance(colour, int) and depth in (2, 4):
        picture.info["transparency"] = colour * (255 // (2**depth - 1))
    elif picture.mode == "RGB" and isinstance(colour, tuple) and depth == 16:
        picture.info["transparency"] = tuple(value >> 8 for value in colour)
