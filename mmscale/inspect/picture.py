"""What one picture is measured for: contents, contrast, and a hash that survives scaling and
re-encoding.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.config import MediaConfig
from mmscale.data.media.image import decode_image

SIDE = 64
"""Pictures are measured at this many pixels a side, stretched to a square."""
LOW = 8
"""Frequencies of the perceptual hash in each direction; LOW * LOW bits."""
CELLS = 4
"""The picture's colours are kept as the means of CELLS x CELLS cells."""
BLANK_CONTRAST = 8
"""A picture whose values differ by no more than this, of 255, in any colour channel shows nothing.
"""

# What the index admitted, under limits of its own, is looked at; this bounds the memory of a
# process.
MAX_PIXELS = 256_000_000

_MEDIA = MediaConfig(image_height=SIDE, image_width=SIDE, max_image_pixels=MAX_PIXELS)
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def measure_picture(data: bytes) -> dict[str, Any]:
    """Measures of one encoded picture, by column of the table.

    ``image_hash`` is of the file; ``image_contrast`` the largest range of a colour channel (0 to
    255); ``image_phash`` and ``image_colours`` are `perceptual_hash` and `cell_colours`.

    Raises `SampleFault` when it cannot be decoded.
    """
    pixels = decode_image(data, _MEDIA)
    flat = pixels.reshape(3, -1)
    return {
        "image_hash": hashlib.blake2b(data, digest_size=16).hexdigest(),
        "image_contrast": int((flat.max(axis=1) - flat.min(axis=1)).max()),
        "image_phash": perceptual_hash(pixels),
        "image_colours": cell_colours(pixels),
    }


def perceptual_hash(pixels: NDArray[np.uint8]) -> int:
    """64-bit hash of uint8 [3, SIDE, SIDE]: signs of the lowest frequencies of its brightness.

    The discrete cosine transform's LOW x LOW lowest frequencies without the constant one in either
    direction, each bit showing whether one is above their median (Zauner, "Implementation and
    benchmarking of perceptual image hash functions", 2010). Pictures that look alike differ in few
    bits.
    """
    grey = np.tensordot(_LUMA, pixels.astype(np.float64), 1)
    basis = _cosines()
    low = basis @ grey @ basis.T
    # Rounded, so that two machines whose sums differ in the last place agree.
    low = np.round(low, 3)
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def cell_colours(pixels: NDArray[np.uint8]) -> bytes:
    """Mean colours of CELLS x CELLS cells of uint8 [3, SIDE, SIDE], 3 * CELLS * CELLS bytes."""
    side = SIDE // CELLS
    means = pixels.reshape(3, CELLS, side, CELLS, side).mean(axis=(2, 4))
    return np.rint(means).astype(np.uint8).tobytes()


@cache
def _cosines() -> NDArray[np.float64]:
    """float64 [LOW, SIDE]: the second type's basis vectors 1..LOW."""
    frequency, place = np.arange(1, LOW + 1)[:, None], np.arange(SIDE)[None, :]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))
