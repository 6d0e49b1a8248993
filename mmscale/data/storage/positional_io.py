"""Reading and writing at an offset of an open file, all that was asked for."""

from __future__ import annotations

import os


def pread_fully(handle: int, size: int, offset: int) -> bytes:
    """`os.pread` that continues after a short read; fewer bytes only at the end of the file."""
    data = os.pread(handle, size, offset)
    if len(data) == size:
        return data
    parts, got = [data], len(data)
    while data and got < size:  # one call reads 2 GiB at most, network file systems less
        data = os.pread(handle, size - got, offset + got)
        parts.append(data)
        got += len(data)
    return b"".join(parts)


def pwrite_fully(handle: int, data: memoryview, offset: int) -> None:
    """`os.pwrite` that continues after a short write."""
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written
