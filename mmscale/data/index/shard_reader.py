"""One forward pass over a shard, local or remote, that hashes whatever it reads or skips."""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mmscale.config import CacheConfig
from mmscale.data.index.tar_headers import open_shard
from mmscale.data.storage.remote_file import CHUNK, RemoteFile, open_beginning, open_remote
from mmscale.data.storage.url import join_url

_CHUNK = 1 << 20
_BEGINNING = 512  # bytes, a tar header


class HashingReader:
    """A `tar_headers.TarInput`; ``told`` is called with every number of bytes read."""

    def __init__(self, file: BinaryIO, told: Callable[[int], object]) -> None:
        self._file, self._told, self._at = file, told, 0
        self._sha256 = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self._sha256.update(data)
        self._told(len(data))
        self._at += len(data)
        return data

    def seek(self, offset: int, /) -> int:
        assert offset >= self._at
        while self._at < offset and self.read(min(_CHUNK, offset - self._at)):
            pass
        return self._at

    def crc(self, size: int) -> int:
        """CRC-32 of the next ``size`` bytes."""
        crc, end = 0, self._at + size
        while self._at < end and (data := self.read(min(_CHUNK, end - self._at))):
            crc = zlib.crc32(data, crc)
        return crc

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


# What shows cheaply that a shard is still the one that was read: of a local one its size, time of
# change in nanoseconds and inode; of a remote one its size and the version that the server reports.
# Empty: nothing does.
Stamp = list[int | str]


@dataclass(frozen=True, kw_only=True)
class OpenPlace:
    """An open shard, its bytes, what to call it in messages, and its `Stamp`."""

    file: BinaryIO
    size: int
    place: Path | str
    stamp: Stamp


@contextmanager
def open_place(base: Path | str, name: str) -> Iterator[OpenPlace]:
    """Open the shard ``name`` of a folder, or of the URL of one."""
    if isinstance(base, Path):
        with open_shard(base / name) as local:
            facts = os.fstat(local.fileno())
            stamp = _local_stamp(facts)
            yield OpenPlace(file=local, size=facts.st_size, place=base / name, stamp=stamp)
    else:
        url = join_url(base, name)
        with (
            open_remote(url, CacheConfig().retries) as remote,
            io.BufferedReader(remote, CHUNK) as file,
        ):
            stamp = _remote_stamp(remote)
            yield OpenPlace(file=file, size=remote.size, place=url, stamp=stamp)


def read_stamp(base: Path | str, name: str) -> Stamp:
    """The `Stamp` of a shard as it is now. Raises `OSError` or `RemoteFault`."""
    if isinstance(base, Path):
        return _local_stamp(os.stat(base / name))
    with open_beginning(join_url(base, name), _BEGINNING, CacheConfig().retries) as file:
        return _remote_stamp(file)


def _local_stamp(facts: os.stat_result) -> Stamp:
    return [facts.st_size, facts.st_mtime_ns, facts.st_ino]


def _remote_stamp(file: RemoteFile) -> Stamp:
    return [file.size, file.version] if file.version else []
