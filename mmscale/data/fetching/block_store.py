"""Bytes of remote shards, by extent: from the local disk, or fetched if they are not there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmscale.config import CacheConfig
from mmscale.data.fetching.cache_room import CacheRoom, make_cache_folder
from mmscale.data.fetching.census import BLOCKS, fixed_bytes, footprint
from mmscale.data.fetching.extent import Extent, FieldCheck
from mmscale.data.fetching.extent_source import Arrival
from mmscale.data.fetching.followed_run import FollowedRun
from mmscale.data.fetching.local_copies import Checks, LocalCopies, what
from mmscale.data.fetching.run_folders import (
    given_up_file,
    make_run_folder,
    pin_file,
    remove_run_folder,
)
from mmscale.data.fetching.server_ranges import ServerRanges
from mmscale.data.host_error import check_host
from mmscale.data.storage.positional_io import pread_fully
from mmscale.data.storage.remote_file import NoRanges, RemoteFault

# Requests for a shard that could not be fetched which fail at once, before it is tried again.
PATIENCE = 256


@dataclass(kw_only=True)
class FetchFigures:
    """What a process has fetched; seconds are summed over its threads."""

    extents: int = 0
    bytes: int = 0
    requests: int = 0
    source_s: float = 0.0  # waiting for servers
    disk_s: float = 0.0  # writing and checking

    def add(self, done: Arrival) -> None:
        """Count one more extent."""
        self.extents += 1
        self.bytes += done.bytes
        self.requests += done.requests
        self.source_s += done.source_s
        self.disk_s += done.disk_s


class BlockStore:
    """Extents in the cache folder, shared by all processes of a machine, within its bound.

    For several threads at once. Picklable: a copy knows nothing of failures, figures and the run.

    Attributes:
        folder: the cache folder.
        figures: what this store has fetched.
    """

    def __init__(self, cache: CacheConfig) -> None:
        self._config = cache
        self.folder = cache.folder()
        self.figures = FetchFigures()
        self._room = CacheRoom(cache)
        self._copies = LocalCopies(cache, self._room)
        self._servers = ServerRanges(self.folder)
        # By SHA-256 of the shard: why, and requests that still fail at once.
        self._failed: dict[str, tuple[str, int]] = {}
        # By name: how often an extent with wrong bytes may be met before it is fetched again.
        self._damaged: dict[str, int] = {}
        self._run: tuple[Path, int] | None = None
        self._followed: FollowedRun | None = None
        self._guard = threading.Lock()

    def open_folder(self, extents: Iterable[Extent]) -> None:
        """Make the cache folder and bring it within its bound.

        Raises `UserError` if it cannot be written, or is too small for one of ``extents``.
        """
        make_cache_folder(self.folder / BLOCKS)
        for extent in map(self._servers.attainable, extents):
            self._room.check(extent.length, what(extent))
        self._room.shrink()
        self._copies.forget_bad()

    def fetch(self, extent: Extent, checks: Iterable[FieldCheck] = ()) -> int:
        """Make ``extent`` be there; returns the bytes that were fetched, 0 if it was there.

        Waits while another process fetches it. Makes room by removing what no living run pins, the
        least recently used first; waits for room where that is not enough. Fields that arrive wrong
        twice are no failure here: who reads them meets them.

        Raises:
            RemoteFault: with the reason. The next `PATIENCE` requests of this store for the shard
                fail at once for the same reason.
            UserError: the bound is too small for it; says the least that works.
        """
        handle, _, fetched = self._open(extent, lambda _: checks)
        os.close(handle)
        return fetched

    def read(self, extent: Extent, offset: int, size: int, checks: Checks | None = None) -> bytes:
        """``size`` bytes at ``offset`` of the shard, which lie in ``extent``. No file stays open.

        What is missing is fetched, and checked against what ``checks`` gives for it.

        Raises `RemoteFault` and `UserError` as `fetch` does.
        """
        handle, start, _ = self._open(extent, checks or _no_checks)
        try:
            return pread_fully(handle, size, offset - start)
        except OSError as error:
            raise RemoteFault(self._trouble(error)) from None
        finally:
            os.close(handle)

    def has(self, extent: Extent) -> bool:
        """Whether ``extent`` is there."""
        return self._copies.has(self._servers.attainable(extent))

    def drop(self, extent: Extent) -> bool:
        """Remove ``extent`` and give its room back; False if somebody uses it now."""
        return self._copies.remove(self._servers.attainable(extent))

    def mend(self, extent: Extent) -> bool:
        """Whether a copy with other bytes than the index has is given up, so that the next read
        fetches it again.

        Not if it arrived so twice, or was given up before: then `PATIENCE` calls are answered False
        first.
        """
        extent = self._servers.attainable(extent)
        left = self._damaged.get(extent.name)
        if left is None and self._copies.arrived_bad(extent):
            left = PATIENCE
        self._damaged[extent.name] = left - 1 if left else PATIENCE
        if not left and self._followed is not None:
            self._followed.doubt(extent.name)
        while not left and not self._copies.remove(extent):
            time.sleep(0.001)  # until who reads it has done so
        return not left

    def follow(self, run: Path) -> None:
        """Leave it to the run of that folder to fetch what this store reads, as long as it does."""
        self._followed = FollowedRun(run)

    def start_run(self, run: str) -> Path:
        """Make the folder ``runs/<run>/`` and hold its lock until `end_run` or this process's end:
        pins go there.

        What a dead run of that name left is removed, and the cache folder is counted anew.
        """
        assert self._run is None, "one run a store"
        with self._room.held():
            self._run = make_run_folder(self.folder, run)
        self._room.recount()
        return self._run[0]

    def end_run(self) -> None:
        """Give up the run and its pins."""
        folder, lock = self._run_folder()
        self._run = None
        with self._room.held():
            remove_run_folder(folder, lock)

    def pin(self, extent: Extent) -> None:
        """Say that the started run still needs ``extent``, there or not: others leave it."""
        with self._room.held():
            self._pin_file(extent).touch()

    def unpin(self, extent: Extent) -> None:
        """Take `pin` back."""
        self._pin_file(extent).unlink(missing_ok=True)

    def give_up_on(self, extent: Extent) -> None:
        """Say that the started run could not fetch ``extent``: those who follow it try
        themselves.
        """
        name = self._servers.attainable(extent).name
        given_up_file(self._run_folder()[0], name).touch()

    def capacity(self) -> int:
        """Bytes that extents may take, by their `footprint`: the bound less all else there."""
        return self._room.limit - fixed_bytes(self.folder)

    @staticmethod
    def footprint(extent: Extent) -> int:
        """What ``extent`` takes of `capacity`."""
        return footprint(extent.length)

    def _open(self, extent: Extent, checks: Checks) -> tuple[int, int, int]:
        """(descriptor of a copy, the byte of the shard at which it starts, bytes fetched)."""
        try:
            found = self._find(extent)
            if found is None and self._followed is not None:
                found = self._followed.wait_for(
                    lambda: self._servers.attainable(extent).name, lambda: self._find(extent)
                )
        except OSError as error:
            raise RemoteFault(self._trouble(error)) from None
        if found is not None:
            return *found, 0
        start, handle, done = self._bring(self._servers.attainable(extent), checks)
        if done is None:
            return handle, start, 0
        with self._guard:
            self.figures.add(done)
        return handle, start, done.bytes

    def _find(self, extent: Extent) -> tuple[int, int] | None:
        """(descriptor of a copy that is there, the byte of the shard at which it starts)."""
        attainable = self._servers.attainable(extent)
        handle = self._copies.find(attainable)
        return None if handle is None else (handle, attainable.offset)

    def _bring(self, extent: Extent, checks: Checks) -> tuple[int, int, Arrival | None]:
        """Fetch it, or fail at once for the reason of before."""
        sha256 = extent.shard.sha256
        reason, left = self._failed.pop(sha256, ("", 0))
        if left:
            self._failed[sha256] = reason, left - 1
            raise RemoteFault(reason)
        try:
            return self._fetch_attainable(extent, checks)
        except OSError as error:
            reason = self._trouble(error)
        except RemoteFault as fault:
            reason = str(fault)
        self._failed[sha256] = reason, PATIENCE
        raise RemoteFault(reason)

    def _fetch_attainable(self, extent: Extent, checks: Checks) -> tuple[int, int, Arrival | None]:
        try:
            return extent.offset, *self._copies.bring(extent, checks)
        except NoRanges:
            self._servers.deny(extent.base)
            return 0, *self._copies.bring(extent.whole(), checks)

    def _trouble(self, error: OSError) -> str:
        """Of the cache's disk. Raises `UserError` if it is the machine's."""
        check_host(error, f"the cache {self.folder}")
        return f"the cache {self.folder}: {error.strerror}"

    def _run_folder(self) -> tuple[Path, int]:
        assert self._run is not None, "start_run comes first"
        return self._run

    def _pin_file(self, extent: Extent) -> Path:
        return pin_file(self._run_folder()[0], self._servers.attainable(extent).name)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self._config, "followed": self._followed and self._followed.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])  # type: ignore[misc]
        if state["followed"] is not None:
            self.follow(state["followed"])


def _no_checks(extent: Extent) -> Iterable[FieldCheck]:
    return ()
