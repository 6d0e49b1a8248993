"""Reading byte ranges of local shards, checked against the index."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from mmscale.data.host_error import check_host
from mmscale.data.index.manifest import ShardPlace
from mmscale.data.storage.positional_io import pread_fully
from mmscale.errors import SampleFault

_OPEN_FILES = 64


class ShardFault(SampleFault):
    """The indexed bytes cannot be had: the shard is gone, cannot be fetched, is too short, or
    changed.

    Another attempt, or another machine, may have them; so nothing that is kept may be concluded
    from it.
    """


class ByteReader:
    """Positional reads with a few files kept open. Picklable: workers open their own files."""

    def __init__(self) -> None:
        self._files: OrderedDict[tuple[Path | str, str], int] = OrderedDict()

    def read(self, place: ShardPlace, offset: int, size: int, crc: int) -> bytes:
        """``size`` bytes at ``offset`` of a local shard, whose CRC-32 must be ``crc``.

        Raises:
            ShardFault: the shard is gone, too short, or holds other bytes.
        """
        name = place.shard.name
        try:
            handle = self._open(place)
            # A damaged index can ask for any size; the file bounds what is allocated.
            inside = offset + size <= os.fstat(handle).st_size
            data = pread_fully(handle, size, offset) if inside else b""
        except OSError as error:
            check_host(error, f"shard {name}")
            raise ShardFault(f"shard {name} cannot be read ({error.strerror})") from None
        if len(data) != size:
            raise ShardFault(f"shard {name} ends before byte {offset + size}")
        if zlib.crc32(data) != crc:
            raise ShardFault(f"shard {name} changed since it was indexed (CRC-32 differs)")
        return data

    def close(self) -> None:
        """Close every file."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _open(self, place: ShardPlace) -> int:
        key = (place.base, place.shard.name)
        handle = self._files.get(key)
        if handle is not None:
            self._files.move_to_end(key)
            return handle
        handle = self._files[key] = os.open(Path(place.base, place.shard.name), os.O_RDONLY)
        if len(self._files) > _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        return handle

    def __reduce__(self) -> tuple[Any, ...]:
        return ByteReader, ()

    def __del__(self) -> None:
        self.close()
