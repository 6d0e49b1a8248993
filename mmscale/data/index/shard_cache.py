"""Local copies of remote shards, by SHA-256, shared by all processes of a machine.

Layout of the cache: ``shards/<2 hex>/<sha256>.tar``, checked copies; beside them ``<sha256>.part``,
a shard that is being fetched; ``lock``, held while room is made. A part file is at once the
temporary file and the lock: who holds its ``flock`` fetches, everybody else who wants this shard
waits for the lock. The kernel releases the lock of a killed process, and the next one starts over
in the same file. A part is stretched to the shard's size before the first byte arrives, so that the
sizes in the folder are the room that is taken or promised.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from mmscale.config import CacheConfig
from mmscale.data.host_error import check_host
from mmscale.data.index.index_files import Shard
from mmscale.data.storage.file_lock import is_at, locked, try_lock
from mmscale.data.storage.remote_file import CHUNK, RemoteFault, RemoteFile
from mmscale.errors import UserError

# Requests for a shard that could not be fetched which fail at once, before it is tried again.
PATIENCE = 256
# A tar is never so short: what is left of a part of this size or less is the reason why fetching it
# failed.
_MAX_REASON_BYTES = 511


class ShardCache:
    """Gives out descriptors of local copies; fetches what is missing and removes what was used
    longest ago.

    A copy that is removed while somebody reads it stays readable there. Not picklable; make one per
    process.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._folder = config.folder()
        self._limit = int(config.max_gb * 1e9)
        self._retries = config.retries
        self._failed: dict[
            str, tuple[str, int]
        ] = {}  # by SHA-256: why, and requests that still fail at once

    def check(self, shards: list[Shard]) -> None:
        """Raise `UserError` if the cache cannot be written, or is too small for one of
        ``shards``.
        """
        largest = max(shards, key=lambda shard: shard.bytes)
        if largest.bytes > self._limit:
            raise UserError(
                f"data.cache.max_gb: {self._limit / 1e9:g} is less than the shard {largest.name} "
                f"of {largest.bytes / 1e9:.3g} GB; raise it"
            )
        make_cache_folder(self._folder / "shards")

    def open(self, url: str, shard: Shard) -> int:
        """A descriptor for reading ``shard``, which lies at ``url``; the caller closes it.

        Raises `RemoteFault` with the reason if it cannot be fetched. The next `PATIENCE` requests
        of this process then fail at once for the same reason.
        """
        reason, left = self._failed.get(shard.sha256, ("", 0))
        if left:
            self._failed[shard.sha256] = reason, left - 1
            raise RemoteFault(reason)
        try:
            handle = self._open_copy(shard)
            if handle is None:
                handle = self._fetch(url, shard)
        except OSError as error:
            check_host(error, f"the cache {self._folder}")
            reason = f"the cache {self._folder}: {error.strerror}"
        except RemoteFault as fault:
            reason = str(fault)
        else:
            self._failed.pop(shard.sha256, None)
            return handle
        self._failed[shard.sha256] = reason, PATIENCE
        raise RemoteFault(reason)

    def drop(self, shard: Shard, handle: int) -> None:
        """Remove the copy that ``handle`` reads, unless another has taken its place."""
        if is_at(self._copy(shard), handle):
            self._copy(shard).unlink(missing_ok=True)

    def _copy(self, shard: Shard) -> Path:
        return self._folder / "shards" / shard.sha256[:2] / f"{shard.sha256}.tar"

    def _open_copy(self, shard: Shard) -> int | None:
        try:
            handle = os.open(self._copy(shard), os.O_RDONLY)
        except FileNotFoundError:
            return None
        if os.fstat(handle).st_size != shard.bytes:  # damaged since it was checked
            os.close(handle)
            self._copy(shard).unlink(missing_ok=True)
            return None
        touch(handle)
        return handle

    def _fetch(self, url: str, shard: Shard) -> int:
        part = self._copy(shard).with_suffix(".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with locked(part) as lock:
                handle = self._open_copy(shard)
                owned = is_at(part, lock)
                if handle is not None:
                    if owned:
                        part.unlink()
                    return handle
                if owned:
                    return self._download(url, shard, part, lock)
                # Taken away while we waited: by its holder, who failed and left the reason, or as
                # abandoned.
                if 0 < os.fstat(lock).st_size <= _MAX_REASON_BYTES:
                    raise RemoteFault(
                        os.pread(lock, _MAX_REASON_BYTES, 0).decode("utf-8", "replace")
                    )

    def _download(self, url: str, shard: Shard, part: Path, lock: int) -> int:
        reason = b""
        try:
            os.truncate(lock, 0)
            self._reserve(shard, part, lock)
            self._receive(url, shard, lock)
            os.fsync(lock)
            # Opened before others can see it, and remove it again.
            handle = os.open(part, os.O_RDONLY)
            os.rename(part, self._copy(shard))
            return handle
        except RemoteFault as fault:
            reason = str(fault).encode()[:_MAX_REASON_BYTES]
            raise
        finally:
            if is_at(part, lock):
                os.truncate(lock, 0)
                os.pwrite(lock, reason, 0)
                part.unlink()

    def _receive(self, url: str, shard: Shard, target: int) -> None:
        """Write the shard to ``target``. What differs from the index is fetched a second time, then
        refused.
        """
        buffer = memoryview(bytearray(CHUNK))
        for _ in range(2):
            with RemoteFile(url, self._retries) as source:
                if source.size != shard.bytes:
                    reason = f"it has {source.size} bytes, but {shard.bytes} when it was indexed"
                    continue
                digest, at = hashlib.sha256(), 0
                while size := source.readinto(buffer):
                    digest.update(buffer[:size])
                    _write(target, buffer[:size], at)
                    at += size
            if digest.hexdigest() == shard.sha256:
                return
            reason = "its SHA-256 differs from the index"
        raise RemoteFault(reason)

    def _reserve(self, shard: Shard, part: Path, lock: int) -> None:
        """Make room for ``shard`` and stretch ``part``, whose descriptor is ``lock``, to its
        size.
        """
        assert shard.bytes <= self._limit, "check was not called"
        while True:
            with locked(self._folder / "lock"):
                fetched = self._make_room(shard.bytes, part)
                if fetched is None:
                    os.truncate(lock, shard.bytes)
                    return
            # All room is promised to shards that others are fetching. Who fetches waits for nobody,
            # so no circle can close.
            with contextlib.suppress(FileNotFoundError), locked(fetched, create=False):
                pass

    def _make_room(self, needed: int, own: Path) -> Path | None:
        """Remove copies until ``needed`` bytes are free; a part to wait for if that is not
        enough.
        """
        copies: list[tuple[int, int, Path]] = []
        room, fetched = self._limit, None
        for path in (self._folder / "shards").glob("??/*"):
            if path == own or path.suffix not in (".tar", ".part"):
                continue
            try:
                if path.suffix == ".part" and _remove_abandoned(path):
                    continue
                facts = path.stat()
            except FileNotFoundError:
                continue
            room -= facts.st_size
            if path.suffix == ".tar":
                copies.append((facts.st_mtime_ns, facts.st_size, path))
            elif facts.st_size:
                fetched = path
        for _, size, path in sorted(copies):
            if room >= needed:
                break
            path.unlink(missing_ok=True)
            room += size
        return None if room >= needed else fetched


def touch(handle: int) -> None:
    """Say that the copy behind ``handle`` is in use."""
    with contextlib.suppress(OSError):  # somebody else's copy, or a disk that became read-only
        os.utime(handle)


def make_cache_folder(folder: Path) -> None:
    """Make a folder of the cache. Raises `UserError` naming the key if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(0, "no right to write there")
    except OSError as error:
        raise UserError(
            f"data.cache.dir: {folder} cannot be used ({error.strerror}); name another folder, or "
            "set MMSCALE_CACHE"
        ) from None


def _remove_abandoned(part: Path) -> bool:
    """Remove a part nobody is fetching any more, as a killed process leaves it."""
    handle = os.open(part, os.O_RDWR)
    try:
        if not try_lock(handle):
            return False
        if is_at(part, handle):
            os.truncate(handle, 0)
            part.unlink()
        return True
    finally:
        os.close(handle)


def _write(handle: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(handle, data, at)
        data, at = data[written:], at + written
