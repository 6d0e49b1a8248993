"""Extents of remote shards on the local disk, shared by all processes of a machine, within a bound.

Layout of the cache folder::

    blocks/<2 hex>/<extent>         an extent that arrived and was checked
    blocks/<2 hex>/<extent>.bad     one that arrived with wrong fields twice; the others are good
    blocks/<2 hex>/<extent>.part    one that is being fetched; who holds its flock fetches
    runs/<id>/lock, pins/<extent>   a run that fetches ahead, and what it still needs
    indexes/, derived/, whole/      copies of indexes, derived arrays, servers without ranges
    ledger                          bytes taken and promised, under its flock
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mmscale.config import CacheConfig
from mmscale.data.fetching.extent import Extent, FieldCheck

Checks = Callable[[Extent], Iterable[FieldCheck]]


@dataclass(kw_only=True)
class FetchFigures:
    """What a process has fetched."""

    extents: int = 0
    bytes: int = 0
    requests: int = 0
    source_s: float = 0.0  # waited for servers, summed over threads
    disk_s: float = 0.0  # writing and checking, summed over threads


class BlockStore:
    """Gives bytes of extents; fetches what is missing. May be used by several threads. Picklable.

    Attributes:
        folder: the cache folder.
        figures: what this process has fetched through this store.
    """

    folder: Path
    figures: FetchFigures

    def __init__(self, cache: CacheConfig) -> None:
        raise NotImplementedError

    def fetch(self, extent: Extent, checks: Iterable[FieldCheck] = ()) -> int:
        """Make ``extent`` be there; returns the bytes that were fetched, 0 if it was there.

        Waits while another process fetches it. Makes room by removing what no live run pins, the
        least recently used first; waits for room where that is not enough. Fields that arrive
        wrong twice are no failure of ``fetch``: who reads them meets them.

        Raises:
            RemoteFault: with the reason. The next `PATIENCE` requests of this process for the shard
                fail at once for the same reason.
            UserError: the bound is too small for it; says the least that works.
        """
        raise NotImplementedError

    def read(self, extent: Extent, offset: int, size: int, checks: Checks | None = None) -> bytes:
        """``size`` bytes at ``offset`` of the shard, which lie in ``extent``; fewer where the copy
        is damaged. No file stays open.

        What is missing is fetched, and checked against what ``checks`` gives for it.

        Raises:
            RemoteFault, UserError: as `fetch`.
        """
        raise NotImplementedError

    def has(self, extent: Extent) -> bool:
        """Whether ``extent`` is there."""
        raise NotImplementedError

    def drop(self, extent: Extent) -> bool:
        """Remove ``extent`` and give its room back; False if it is being read or fetched now."""
        raise NotImplementedError

    def start_run(self, run: str) -> Path:
        """Make the folder ``runs/<run>/`` and hold its lock until this process ends: pins go there.

        What a dead run of that name left is removed, and the folder is counted anew.
        """
        raise NotImplementedError

    def pin(self, extent: Extent) -> None:
        """Say that the started run still needs ``extent``, there or not: nobody else removes it."""
        raise NotImplementedError

    def unpin(self, extent: Extent) -> None:
        """Take `pin` back."""
        raise NotImplementedError

    def capacity(self) -> int:
        """Bytes that extents may take: the bound less all else in the folder, which is counted."""
        raise NotImplementedError

    @staticmethod
    def footprint(extent: Extent) -> int:
        """What ``extent`` takes of `capacity`: whole pages."""
        raise NotImplementedError
