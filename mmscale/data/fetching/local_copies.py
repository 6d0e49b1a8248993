"""Copies of extents on the local disk, and how they come there: once for all processes.

An extent that is being fetched is a ``.part`` file: at once the temporary file and the lock. Who
holds its flock fetches; everybody else who wants this extent waits for the lock. The kernel frees
the lock of a killed process, and the next one takes its part over. Copies are not flushed to the
disk: what a power failure leaves of one is found wrong when it is read, and fetched again.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from mmscale.config import CacheConfig
from mmscale.data.fetching.cache_room import CacheRoom
from mmscale.data.fetching.census import BAD, BLOCKS, PART
from mmscale.data.fetching.extent import Extent, FieldCheck
from mmscale.data.fetching.extent_source import Arrival, receive
from mmscale.data.storage.file_lock import is_at
from mmscale.data.storage.remote_file import NoRanges, RemoteFault

Checks = Callable[[Extent], Iterable[FieldCheck]]

_MAX_REASON_BYTES = 511
_NO_RANGES = b"no ranges"
# A copy is marked as used where the last mark is so old: each mark is a write.
_MARK_AFTER_NS = 1_000_000_000


class LocalCopies:
    """The copies in one cache folder. Picklable; for several threads at once."""

    def __init__(self, cache: CacheConfig, room: CacheRoom) -> None:
        self._folder, self._retries = str(cache.folder() / BLOCKS), cache.retries
        self._room = room

    def find(self, extent: Extent) -> int | None:
        """A descriptor of the copy, if there is one. Until the caller closes it, nobody removes the
        copy.
        """
        for path in self._names(extent):
            try:
                handle = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
            fcntl.flock(handle, fcntl.LOCK_SH)
            facts = os.fstat(handle)
            if facts.st_size == extent.length:
                _mark(handle, facts)
                return handle
            os.close(handle)
            if facts.st_size:  # cut short since it was checked, not being removed
                self._room.remove(Path(path))
        return None

    def bring(self, extent: Extent, checks: Checks) -> tuple[int, Arrival | None]:
        """(descriptor as `find` gives it, what fetching it took; None: another process did).

        Raises:
            RemoteFault, NoRanges: it cannot be fetched; who waited for another process gets the
                same reason as that.
            UserError: there can never be room for it.
            OSError: the cache folder cannot be read or written.
        """
        part = Path(self._names(extent)[0] + PART)
        self._room.make_folder(part.parent, what(extent))
        while True:
            lock = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
            handle, done = -1, None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if any(is_at(Path(path), lock) for path in self._names(extent)):
                    handle = lock  # by the process that was waited for
                elif (found := self.find(extent)) is not None:
                    self._room.discard(part, lock)
                    handle = found
                elif is_at(part, lock):
                    done = self._download(extent, checks, part, lock)
                    handle = lock
                else:
                    _raise_reason(lock)
            finally:
                if handle != lock:
                    os.close(lock)
            if handle >= 0:
                return handle, done

    def has(self, extent: Extent) -> bool:
        """Whether there is a copy."""
        return any(map(os.path.exists, self._names(extent)))

    def arrived_bad(self, extent: Extent) -> bool:
        """Whether the copy has fields that twice arrived otherwise than the index has them."""
        return os.path.exists(self._names(extent)[1])

    def remove(self, extent: Extent) -> bool:
        """Remove the copy, if there is one; False if somebody uses it."""
        there = filter(os.path.exists, self._names(extent))
        return all([self._room.remove(Path(path)) for path in there])

    def forget_bad(self) -> None:
        """Remove all copies that `arrived_bad`: their servers may have been mended."""
        for path in Path(self._folder).glob(f"??/*{BAD}"):
            self._room.remove(path)

    def _names(self, extent: Extent) -> tuple[str, str]:
        """Of the copy, and of one with wrong fields; strings, as each read makes them."""
        good = f"{self._folder}/{extent.shard.sha256[:2]}/{extent.name}"
        return good, good + BAD

    def _download(self, extent: Extent, checks: Checks, part: Path, lock: int) -> Arrival:
        reason = b""
        try:
            if os.fstat(lock).st_size != extent.length:  # else it has room: a killed process's
                self._room.claim(lock, extent.length, what(extent))
            done = receive(extent, checks(extent), lock, self._retries)
            self._room.rename(part, Path(self._names(extent)[0 if done.sound else 1]))
            return done
        except NoRanges:
            reason = _NO_RANGES
            raise
        except RemoteFault as fault:
            reason = str(fault).encode()[:_MAX_REASON_BYTES]
            raise
        finally:
            if is_at(part, lock):
                self._room.discard(part, lock)
                os.pwrite(lock, reason, 0)


def what(extent: Extent) -> str:
    """``extent`` in messages."""
    return f"the part of {extent.length / 1e6:.3g} MB of the shard {extent.shard.name}"


def _raise_reason(lock: int) -> None:
    """Raise what the process that was waited for raised, if it failed and left its reason in the
    part. Whatever else is removed is emptied.
    """
    reason = os.pread(lock, _MAX_REASON_BYTES, 0)
    if reason == _NO_RANGES:
        raise NoRanges
    if reason:
        raise RemoteFault(reason.decode("utf-8", "replace"))


def _mark(handle: int, facts: os.stat_result) -> None:
    if time.time_ns() - facts.st_mtime_ns > _MARK_AFTER_NS:
        with suppress(OSError):  # somebody else's copy, or a disk that became read-only
            os.utime(handle)
