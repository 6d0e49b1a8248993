"""The header of an ordinary JPEG, read in microseconds.

Nearly all JPEGs are baseline, of one or three components in one scan, with at most one Exif block.
Of those this module knows what decoding needs; everything else is left to Pillow's reader, which is
fifty times as slow and knows all of it. Markers and Exif are those of ITU-T T.81 and of the Exif
2.3 standard; XMP (ISO 16684-1) may name an orientation, too.
"""

from __future__ import annotations

from typing import NamedTuple

_SOI, _SOS, _APP1 = b"\xff\xd8", 0xDA, 0xE1
_BASELINE = (0xC0, 0xC1)
# Tables, restart interval, comments and application data; what else stands before the scan is not
# ordinary.
_SKIPPED = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
_EXIF = b"Exif\0\0"
_XMP, _XMP_ORIENTATION = b"http://ns.adobe.com/xap/1.0/\0", b"tiff:Orientation"
_ORIENTATION, _SHORT = 274, 3


class JpegHeader(NamedTuple):
    """Size of the stored picture in pixels, and its EXIF orientation (1: upright)."""

    height: int
    width: int
    orientation: int


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of an ordinary JPEG; None for anything else, broken ones included."""
    if not data.startswith(_SOI):
        return None
    at, end = 2, len(data)
    size: tuple[int, int] | None = None
    components = 0
    orientation: int | None = None
    while at + 4 <= end and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = at + 4
        at += 2 + length
        if length < 2 or at > end:
            return None
        if marker == _SOS:
            # With all components in the first scan there is no other: libjpeg refuses one.
            if size is None or data[body : body + 1] != bytes([components]):
                return None
            return JpegHeader(*size, orientation or 1)
        if marker in _BASELINE:
            if size is not None or length < 8 or data[body] != 8 or data[body + 5] not in (1, 3):
                return None
            components = data[body + 5]
            size = (
                int.from_bytes(data[body + 1 : body + 3], "big"),
                int.from_bytes(data[body + 3 : body + 5], "big"),
            )
        elif marker == _APP1 and data.startswith(_EXIF, body):
            if orientation is not None:  # the rest of a long block, or one more to choose from
                return None
            orientation = _exif_orientation(data[body + 6 : at])
            if orientation is None:
                return None
        elif marker == _APP1 and data.startswith(_XMP, body):
            if data.find(_XMP_ORIENTATION, body, at) >= 0:
                return None
        elif marker not in _SKIPPED:
            return None
    return None


def _exif_orientation(tiff: bytes) -> int | None:
    """1 to 8 by the first directory of an Exif block; 1 where it does not say; None where it is not
    ordinary.
    """
    if tiff[:4] == b"II*\0":
        order = "little"
    elif tiff[:4] == b"MM\0*":
        order = "big"
    else:
        return None

    def number(start: int, size: int) -> int:
        return int.from_bytes(tiff[start : start + size], order)  # type: ignore[arg-type]

    first = number(4, 4)
    entries = number(first, 2)
    if first < 8 or first + 2 + 12 * entries > len(tiff):
        return None
    orientation = 1
    for entry in range(first + 2, first + 2 + 12 * entries, 12):
        if number(entry, 2) == _ORIENTATION:
            if number(entry + 2, 2) != _SHORT or number(entry + 4, 4) != 1:
                return None
            orientation = number(entry + 8, 2)
    return orientation if 1 <= orientation <= 8 else 1
