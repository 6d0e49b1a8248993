"""Reading byte ranges of shards, checked against the index."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from mmscale.errors import SampleFault

_OPEN_FILES = 64


class ByteStore:
    """Positional reads with a few files kept open. Picklable: workers open their own files."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int, crc: int) -> bytes:
        """``size`` bytes at ``offset``, whose CRC-32 must be ``crc``.

        Raises:
            SampleFault: the shard is gone, too short, or the bytes are not those that were indexed.
        """
        try:
            handle = self._open(path)
            # A damaged index can ask for any size; the file bounds what is allocated.
            inside = offset + size <= os.fstat(handle).st_size
            data = os.pread(handle, size, offset) if inside else b""
        except OSError as error:
            raise SampleFault(f"shard {path.name} cannot be read ({error.strerror})") from None
        if not inside or len(data) != size:
            raise SampleFault(f"shard {path.name} ends before byte {offset + size}")
        if zlib.crc32(data) != crc:
            raise SampleFault(f"shard {path.name} changed since it was indexed (CRC-32 differs)")
        return data

    def close(self) -> None:
        """Close every file."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _open(self, path: Path) -> int:
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        handle = os.open(path, os.O_RDONLY)
        self._files[path] = handle
        if len(self._files) > _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return handle

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._files = OrderedDict()

    def __del__(self) -> None:
        self.close()
