"""A look at everything in the cache folder: what takes room, and what of it may go.

Layout of the folder::

    blocks/<2 hex>/<extent>         an extent that arrived as the index has it
    blocks/<2 hex>/<extent>.bad     one that twice arrived with wrong fields; the others are good
    blocks/<2 hex>/<extent>.part    one that is being fetched; who holds its flock fetches
    runs/<id>/                      a run that fetches ahead, and what it needs (`run_folders`)
    indexes/, derived/              copies of indexes; arrays that follow from an index
    whole/                          servers that know no ranges (`server_ranges`)
    ledger                          bytes taken and promised, under its flock (`cache_room`)

Other files of the folder are somebody else's and not looked at.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mmscale.data.fetching.run_folders import RUNS
from mmscale.data.storage.file_lock import is_at, try_lock

BLOCKS = "blocks"
PART, BAD, TEMPORARY = ".part", ".bad", ".tmp"
PAGE = 4096

_OTHERS = (RUNS, "indexes", "derived", "whole")


@dataclass(kw_only=True)
class Census:
    """Bytes of the disk.

    Attributes:
        fixed: what is never removed to make room for something else.
        promised: extents that are being fetched, at their full size.
        copies: (time of the last use, bytes, path) of each extent that is there.
    """

    fixed: int = 0
    promised: int = 0
    copies: list[tuple[int, int, Path]] = field(default_factory=list)

    @property
    def used(self) -> int:
        return self.fixed + self.promised + sum(size for _, size, _ in self.copies)


def footprint(size: int) -> int:
    """Bytes of the disk that a file of ``size`` bytes takes at the most: whole pages, and one more
    for its name and the file system's own notes.
    """
    return -(-size // PAGE) * PAGE + PAGE if size else 0


def take_census(cache: Path) -> Census:
    """Count the folder; what dead processes were writing is removed."""
    census = Census(fixed=fixed_bytes(cache, _remove_if_abandoned))
    for folder in _folders(cache / BLOCKS):
        for entry in _entries(folder):
            path = Path(entry)
            with suppress(FileNotFoundError):  # removed at this moment
                if path.suffix == PART and remove_unlocked(path) is not None:
                    continue
                facts = entry.stat(follow_symlinks=False)
                if path.suffix == PART:
                    census.promised += _bytes_of(facts)
                else:
                    census.copies.append((facts.st_mtime_ns, _bytes_of(facts), path))
    return census


def fixed_bytes(cache: Path, removed: Callable[[os.DirEntry[str]], bool] | None = None) -> int:
    """`Census.fixed` alone, which takes no look at the extents."""
    total = PAGE * (2 + len(_folders(cache / BLOCKS)))
    queue = [cache / name for name in _OTHERS if (cache / name).is_dir()]
    while queue:
        folder = queue.pop()
        total += PAGE
        for entry in _entries(folder):
            with suppress(FileNotFoundError):
                if removed is not None and removed(entry):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    queue.append(Path(entry))
                else:
                    total += _bytes_of(entry.stat(follow_symlinks=False))
    return total


def remove_unlocked(path: Path) -> int | None:
    """Remove a file; returns the bytes of the disk it took, None if somebody has it locked or it
    may not be written.
    """
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return 0
    except PermissionError:  # another user's
        return None
    try:
        return remove_locked(path, handle) if try_lock(handle) else None
    finally:
        os.close(handle)


def remove_locked(path: Path, handle: int) -> int:
    """`remove_unlocked` by who holds the lock of ``handle``, and if that is still at ``path``.

    It is emptied, so that it takes no room although others may have it open: they find it empty.
    """
    if not is_at(path, handle):
        return 0
    size = _bytes_of(os.fstat(handle))
    path.unlink()
    os.truncate(handle, 0)
    return size


def _remove_if_abandoned(entry: os.DirEntry[str]) -> bool:
    """Remove what a dead process was writing outside of ``blocks``."""
    path = Path(entry)
    if path.suffix == TEMPORARY:
        return remove_unlocked(path) is not None
    if path.suffix != PART or not entry.is_dir(follow_symlinks=False):
        return False
    # An index that is being copied: who copies has the lock beside it.
    try:
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR)
    except OSError:
        return False
    try:
        if not try_lock(lock):
            return False
        shutil.rmtree(path, ignore_errors=True)
        return True
    finally:
        os.close(lock)


def _bytes_of(facts: os.stat_result) -> int:
    return max(footprint(facts.st_size), facts.st_blocks * 512)


def _folders(folder: Path) -> list[Path]:
    return [Path(entry) for entry in _entries(folder) if entry.is_dir(follow_symlinks=False)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
