"""The bound of the cache folder: every byte is counted before it is written.

``ledger`` holds the bytes that are taken or promised; its flock is held for every change. A claim
adds before the file grows, a removal subtracts after the file is empty. So a process that is killed
in between leaves a count that is too high, never one that is too low; the folder is counted anew
(`census`) when there seems to be no room. Nothing is removed while somebody has it locked, and what
is removed is emptied: no deleted file takes room because a process still has it open.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mmscale.config import CacheConfig
from mmscale.data.fetching.census import (
    BAD,
    PAGE,
    Census,
    fixed_bytes,
    footprint,
    remove_locked,
    remove_unlocked,
    take_census,
)
from mmscale.data.fetching.run_folders import pinned_names, remove_dead_runs
from mmscale.errors import UserError
from mmscale.messages import warn

# For the ledger, locks, markers and what runs say of themselves, which nobody claims.
SMALL_FILES = 16 * PAGE

_COUNT_BYTES = 8
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _TELL_AFTER_S = 0.02, 1.0, 60.0
# One in so many extents goes beyond what is needed now: each time takes a look at all of them.
_ALL_PER_SPARE = 64


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


class CacheRoom:
    """The room of one cache folder, shared by all processes of the machine. Picklable.

    Attributes:
        folder: the cache folder.
        limit: bytes that claimed files and folders may take.
    """

    def __init__(self, cache: CacheConfig) -> None:
        self.folder = cache.folder()
        self.limit = int(cache.max_gb * 1e9) - SMALL_FILES

    def claim(self, handle: int, size: int, what: str) -> None:
        """Stretch the empty file ``handle``, which lies in the folder, to ``size`` bytes.

        Extents that no living run needs are removed where that takes it, the least recently used
        first; if that is not enough, room is waited for.

        Raises `UserError` if the bound is too small for ``what``, which the file is for.
        """
        self._take(footprint(size), what, partial(os.truncate, handle, size))

    def make_folder(self, folder: Path, what: str) -> None:
        """Make ``folder`` and those above it; as `claim`."""
        if not folder.is_dir():
            most = PAGE * len(folder.relative_to(self.folder).parts)
            self._take(most, what, partial(folder.mkdir, parents=True, exist_ok=True))

    def rename(self, old: Path, new: Path) -> None:
        """Rename what lies in the folder; who counts it meanwhile would else miss it."""
        with self._ledger():
            os.replace(old, new)

    def remove(self, path: Path) -> bool:
        """Remove a file of the folder; False if somebody has it locked."""
        with self._ledger() as ledger:
            freed = remove_unlocked(path)
            ledger.subtract(freed or 0)
        return freed is not None

    def discard(self, path: Path, handle: int) -> None:
        """`remove` by who holds the lock of ``handle``, if that is still at ``path``."""
        with self._ledger() as ledger:
            ledger.subtract(remove_locked(path, handle))

    def recount(self) -> None:
        """Count the folder anew, remove what dead processes left, and what is above the bound."""
        with self._ledger() as ledger:
            ledger.used = self._make_room(0)

    def shrink(self) -> None:
        """Remove what is above the bound, which another run may have set higher."""
        with self._ledger() as ledger:
            if ledger.used > self.limit:
                ledger.used = self._make_room(0)

    def check(self, size: int, what: str) -> None:
        """Raise `UserError` if a file of ``size`` bytes can never have room."""
        self._check(fixed_bytes(self.folder), footprint(size), what)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else claims, removes or counts meanwhile."""
        with self._ledger():
            yield

    def _check(self, fixed: int, needed: int, what: str) -> None:
        least = fixed + needed + SMALL_FILES
        if fixed + needed > self.limit:
            raise UserError(
                f"data.cache.max_gb: {(self.limit + SMALL_FILES) / 1e9:g} is less than {what} "
                f"needs; raise it to {math.ceil(least / 1e6) / 1e3} or more"
            )

    def _take(self, needed: int, what: str, act: Callable[[], None]) -> None:
        """Count ``needed`` bytes and then ``act``, as soon as there is room."""
        pause, began, told = _FIRST_PAUSE_S, time.monotonic(), False
        while not self._taken(needed, what, act):
            if not told and time.monotonic() - began > _TELL_AFTER_S:
                warn(f"data.cache.max_gb: {what} waits for room that runs hold; raise it")
                told = True
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _taken(self, needed: int, what: str, act: Callable[[], None]) -> bool:
        with self._ledger() as ledger:
            if ledger.used + needed > self.limit:
                ledger.used = self._make_room(needed, what)
            if ledger.used + needed > self.limit:
                return False
            ledger.used += needed
            act()
            return True

    def _make_room(self, needed: int, what: str = "") -> int:
        """Remove extents until ``needed`` bytes are free, if that can be; the bytes used then."""
        remove_dead_runs(self.folder)
        census = take_census(self.folder)
        if needed:
            self._check(census.fixed, needed, what)
        excess = census.used + needed - self.limit
        return census.used - (self._evict(census, excess) if excess > 0 else 0)

    def _evict(self, census: Census, wanted: int) -> int:
        """Remove extents until ``wanted`` bytes are free, if that can be; returns how many are."""
        freed, spare = 0, len(census.copies) // _ALL_PER_SPARE
        pinned = pinned_names(self.folder)
        for _, _, path in sorted(census.copies):
            if freed >= wanted:
                spare -= 1
                if spare < 0:
                    break
            if path.name.removesuffix(BAD) not in pinned:
                freed += remove_unlocked(path) or 0
        return freed

    @contextmanager
    def _ledger(self) -> Iterator[_Ledger]:
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / "ledger", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            ledger = _Ledger(handle)
            if not ledger.is_sound:
                ledger.used = take_census(self.folder).used
            yield ledger
        finally:
            os.close(handle)


class _Ledger:
    """The count in the locked file ``handle``."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        raw = os.pread(handle, _COUNT_BYTES, 0)
        self.is_sound = len(raw) == _COUNT_BYTES
        self._used = int.from_bytes(raw, "little")

    @property
    def used(self) -> int:
        return self._used

    @used.setter
    def used(self, count: int) -> None:
        self._used = max(0, count)
        os.pwrite(self._handle, self._used.to_bytes(_COUNT_BYTES, "little"), 0)

    def subtract(self, count: int) -> None:
        if count:
            self.used = self._used - count
