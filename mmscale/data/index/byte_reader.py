"""Reading byte ranges of shards, local or remote, checked against the index."""

from __future__ import annotations

import os
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from mmscale.config import CacheConfig
from mmscale.data.host_error import check_host
from mmscale.data.index.manifest import ShardPlace
from mmscale.data.index.shard_cache import ShardCache, touch
from mmscale.data.storage.remote_file import RemoteFault
from mmscale.data.storage.url import join_url
from mmscale.errors import SampleFault

_OPEN_FILES = 64
# A cached copy that stays open is marked as in use after so many reads.
_READS_PER_TOUCH = 64


class ShardFault(SampleFault):
    """The indexed bytes cannot be had: the shard is gone, cannot be fetched, is too short, or
    changed.

    Another attempt, or another machine, may have them; so nothing that is kept may be concluded
    from it.
    """


class _OtherBytes(ShardFault):
    """The bytes are there, and not those of the index."""


class ByteReader:
    """Positional reads with a few files kept open. Picklable: workers open their own files.

    Remote shards are read from their local copies, which are fetched when they are first needed.
    """

    def __init__(self, cache: CacheConfig) -> None:
        self._config = cache
        self._cache = ShardCache(cache)
        self._files: OrderedDict[tuple[Path | str, str], _OpenFile] = OrderedDict()
        self._dropped: set[tuple[Path | str, str]] = set()  # shards whose copies were found damaged

    def read(self, place: ShardPlace, offset: int, size: int, crc: int) -> bytes:
        """``size`` bytes at ``offset`` of a shard, whose CRC-32 must be ``crc``.

        Raises:
            ShardFault: the shard is gone, cannot be fetched, is too short, or holds other bytes.
        """
        while True:
            try:
                return self._read(place, offset, size, crc)
            except _OtherBytes:
                if not self._drop_copy(place):  # which it does once a shard
                    raise

    def _read(self, place: ShardPlace, offset: int, size: int, crc: int) -> bytes:
        name = place.shard.name
        try:
            file = self._open(place)
            # A damaged index can ask for any size; the file bounds what is allocated.
            inside = offset + size <= os.fstat(file.handle).st_size
            data = _read_fully(file.handle, size, offset) if inside else b""
        except RemoteFault as fault:
            raise ShardFault(f"shard {name} cannot be fetched ({fault})") from None
        except OSError as error:
            check_host(error, f"shard {name}")
            raise ShardFault(f"shard {name} cannot be read ({error.strerror})") from None
        if len(data) != size:
            raise ShardFault(f"shard {name} ends before byte {offset + size}")
        if zlib.crc32(data) != crc:
            raise _OtherBytes(f"shard {name} changed since it was indexed (CRC-32 differs)")
        return data

    def _drop_copy(self, place: ShardPlace) -> bool:
        """Give up the local copy of a remote shard, whose disk may have lost a bit since it was
        checked; once.
        """
        key = (place.base, place.shard.name)
        if not isinstance(place.base, str) or key in self._dropped:
            return False
        self._dropped.add(key)
        handle = self._files.pop(key).handle
        self._cache.drop(place.shard, handle)
        os.close(handle)
        return True

    def close(self) -> None:
        """Close every file."""
        while self._files:
            os.close(self._files.popitem()[1].handle)

    def _open(self, place: ShardPlace) -> _OpenFile:
        key = (place.base, place.shard.name)
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = _OpenFile(self._descriptor(place))
            if len(self._files) > _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1].handle)
            return file
        self._files.move_to_end(key)
        file.reads += 1
        if isinstance(place.base, str) and file.reads % _READS_PER_TOUCH == 0:
            touch(file.handle)
        return file

    def _descriptor(self, place: ShardPlace) -> int:
        if isinstance(place.base, str):
            return self._cache.open(join_url(place.base, place.shard.name), place.shard)
        return os.open(place.base / place.shard.name, os.O_RDONLY)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self._config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()


class _OpenFile:
    """A descriptor and how often it was read from."""

    __slots__ = ("handle", "reads")

    def __init__(self, handle: int) -> None:
        self.handle, self.reads = handle, 0


def _read_fully(handle: int, size: int, offset: int) -> bytes:
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
