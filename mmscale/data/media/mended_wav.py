"""A WAV whose sizes were never filled in, with the sizes it has.

Programs that write into a pipe, or end before they are done, leave 0 or the largest number where
the size of the data should stand. libsndfile understands the largest numbers; it takes 0 for no
sound. Some writers forget the byte that pads a chunk of odd length, and what follows is not found.
(IBM and Microsoft: Multimedia Programming Interface and Data Specifications 1.0, chapter 2.)
"""

from __future__ import annotations

import struct

_HEADER = 12  # RIFF, size, WAVE
_MOST_CHUNKS = 1000
_SIZE = struct.Struct("<I")


def mended_wav(data: bytes) -> bytes:
    """``data`` itself where nothing is to be mended, also where its chunks cannot be followed."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return data
    at = _HEADER
    parts: list[bytes] = []  # of the copy, where a byte of padding must be put in
    kept = 0
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data):
            return data
        name, size = data[at : at + 4], _SIZE.unpack_from(data, at + 4)[0]
        if name == b"data":
            break
        end = at + 8 + size
        if size % 2:
            if _is_name(data, end) and not _is_name(data, end + 1):
                parts.append(data[kept:end] + b"\0")
                kept = end
            else:
                end += 1
        at = end
    else:
        return data
    left = len(data) - at - 8
    if size == 0 and left and not _is_name(data, at + 8):
        return b"".join([*parts, data[kept:at], b"data", _SIZE.pack(left), data[at + 8 :]])
    return b"".join([*parts, data[kept:]]) if parts else data


def _is_name(data: bytes, at: int) -> bool:
    """Whether a chunk may begin there: four letters, and a size that lies in the file."""
    name = data[at : at + 4]
    if len(name) < 4 or not all(32 <= byte < 127 for byte in name) or at + 8 > len(data):
        return False
    return name == b"data" or at + 8 + int(_SIZE.unpack_from(data, at + 4)[0]) <= len(data) + 1
