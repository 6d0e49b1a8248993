"""The process that fetches ahead: one a machine, for all its ranks and their loaders."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from mmscale.data.fetching.block_store import BlockStore
from mmscale.data.fetching.extent import Extent
from mmscale.data.prefetching.depth import Depth
from mmscale.data.prefetching.lookahead import Lookahead, SampleBlock
from mmscale.data.prefetching.progress import make_progress, read_progress
from mmscale.data.storage.remote_file import RemoteFault
from mmscale.data.worker_pool import exit_with_parent
from mmscale.errors import UserError
from mmscale.plugins import import_plugins

if TYPE_CHECKING:
    from mmscale.config import CacheConfig
    from mmscale.data.planning.step_plan import Plan

PROGRESS, FIGURES = "progress", "figures.json"

_TICK_S = 0.02  # between looks at the ranks' progress
_FIGURES_S = 0.5


@dataclass(kw_only=True)
class FetchTask:
    """What one machine reads of a run.

    Attributes:
        node: its ranks, of ``world``.
        ranks: processes that tell their progress.
        steps: the run's steps from the first to be read on.
        run: name of the run's folder in the cache, of no other living run.
    """

    plan: Plan
    cache: CacheConfig
    node: range
    world: int
    ranks: int
    steps: range
    run: str


class Fetcher:
    """Fetches what a task reads, in the order of use, and drops what it does not need.

    A block that cannot be fetched is left to the loaders, which meet the reason and report it.
    """

    def __init__(self, task: FetchTask) -> None:
        self._task = task
        self.store = BlockStore(task.cache)
        sets = task.plan.sets
        self._maps = [planned.dataset.extents for planned in sets]
        self._extents = lru_cache(1 << 16)(self._find_extents)
        self.look = Lookahead(
            lambda step: task.plan.node_share(step, task.node, task.world),
            [planned.layout.block if planned.dataset.extents else 0 for planned in sets],
            size=self.size,
            is_there=self._is_there,
            start=task.steps.start,
        )
        self.depth = Depth(task.cache.ahead_s)
        self._users: dict[str, int] = {}  # pins of an extent, which two blocks may share
        self._largest = 0  # block
        self._most = 0  # that one more step has needed
        self._room = self.store.capacity()
        self._pool = ThreadPoolExecutor(task.cache.connections, "fetch")
        self._running: dict[Future[float], SampleBlock] = {}
        self._told = self._seen = time.monotonic()
        self._busy_s = 0.0  # something was being fetched

    def size(self, block: SampleBlock) -> int:
        """Bytes of a block on the disk."""
        return sum(self.store.footprint(extent) for extent in self._extents(block))

    def run(self, stop: Connection) -> None:
        """Until the run's last step was read, or the other end of ``stop`` is closed."""
        folder = self.store.start_run(self._task.run)
        make_progress(folder / PROGRESS, self._task.ranks, self._task.steps.start)
        try:
            self._meet_servers()
            while not stop.poll() and self._turn(folder):
                pass
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self.store.end_run()

    def _meet_servers(self) -> None:
        """Read the first block of every set that the first step reads: a server may turn out to
        know no ranges, which changes what blocks are made of.
        """
        task, met = self._task, set[int]()
        for sequence in task.plan.node_share(task.steps.start, task.node, task.world):
            extents = self._maps[sequence.set_index]
            if extents is not None and sequence.set_index not in met:
                met.add(sequence.set_index)
                for extent in extents.of_block(int(sequence.samples[0]) // extents.block):
                    with suppress(RemoteFault, UserError):
                        self.store.fetch(extent, extents.checks(extent))

    def _turn(self, folder: Path) -> bool:
        """One look at everything; False when all that the run reads was read."""
        done = read_progress(folder / PROGRESS)
        if done >= self._task.steps.start:
            self.depth.progressed(done)
        for block in self.look.consumed(done):
            self._unpin(block)
        self._look(done)
        while len(self._running) < self._task.cache.connections and self._begin(done):
            pass
        self._collect()
        self._write_figures(folder, done)
        return done < self._task.steps.stop - 1

    def _look(self, done: int) -> None:
        """Look ahead, the first step alone first: nothing later may delay it."""
        first = self._task.steps.start
        if done < first <= self.look.looked - 1 and (self.look.next() or self._running):
            return
        until = min(self._task.steps.stop, done + 1 + self.depth.steps)
        # What is needed next always; what comes later as long as everything before it has room.
        while self.look.looked < until and (
            self.look.looked <= done + 1 or self.look.needed_bytes + self._most <= self._room
        ):
            before = self.look.needed_bytes
            self.look.look(self.look.looked + 1)
            self._most = max(self._most, self.look.needed_bytes - before)
            if done < first:
                break

    def _begin(self, done: int) -> bool:
        """Begin to fetch the next block, if there is one and room for it."""
        block = self.look.next()
        if block is None:
            return False
        size = self.size(block)
        self._largest = max(self._largest, size)
        # One more always fits: what a loader meets first, it fetches itself.
        room = self._room - self._largest - self.look.held_bytes
        if size > room:
            if self.look.first_use(block) > done + 1:
                return False
            given = self.look.surrender(size - room, done)
            for held in given:
                self._unpin(held)
            self._drop(given)
            room = self._room - self._largest - self.look.held_bytes
            if size > room and self.look.held_bytes:
                return False
        self._drop(self.look.give_up(size - (room - self.look.released_bytes)))
        self.look.take()
        self._pin(block)
        self._running[self._pool.submit(self._fetch, block)] = block
        return True

    def _drop(self, blocks: list[SampleBlock]) -> None:
        """Remove blocks from the disk, but what a block that is needed shares with them."""
        for block in blocks:
            for extent in self._extents(block):
                if extent.name not in self._users:
                    self.store.drop(extent)

    def _fetch(self, block: SampleBlock) -> float:
        """Seconds that it took."""
        began = time.monotonic()
        extents = self._maps[block.set_index]
        assert extents is not None, "a local set"
        for extent in self._extents(block):
            try:
                self.store.fetch(extent, extents.checks(extent))
            except (RemoteFault, UserError):
                self.store.give_up_on(extent)  # the loaders will meet it
        return time.monotonic() - began

    def _collect(self) -> None:
        """Note what has come, waiting a moment for it."""
        if not self._running:
            time.sleep(_TICK_S)
            return
        for future in wait(self._running, timeout=_TICK_S, return_when=FIRST_COMPLETED).done:
            del self._running[future]
            self.depth.waited(future.result())

    def _find_extents(self, block: SampleBlock) -> tuple[Extent, ...]:
        extents = self._maps[block.set_index]
        assert extents is not None, "a local set"
        return tuple(extents.of_block(block.number))

    def _is_there(self, block: SampleBlock) -> bool:
        extents = self._extents(block)
        self._pin(block)  # first, or it may be removed in between
        if all(map(self.store.has, extents)):
            return True
        self._unpin(block)
        return False

    def _pin(self, block: SampleBlock) -> None:
        for extent in self._extents(block):
            self._users[extent.name] = self._users.get(extent.name, 0) + 1
            if self._users[extent.name] == 1:
                self.store.pin(extent)

    def _unpin(self, block: SampleBlock) -> None:
        for extent in self._extents(block):
            self._users[extent.name] -= 1
            if not self._users[extent.name]:
                del self._users[extent.name]
                self.store.unpin(extent)

    def _write_figures(self, folder: Path, done: int) -> None:
        now = time.monotonic()
        self._busy_s += now - self._seen if self._running else 0.0
        self._seen = now
        if now - self._told < _FIGURES_S:
            return
        self._told = now
        figures, step_s = self.store.figures, self.depth.step_s
        ahead = max(0, self._fetched_until() - done - 1)
        content = {
            "bytes": figures.bytes,
            "requests": figures.requests,
            "source_mb_s": _rate(figures.bytes, self._busy_s),
            "disk_mb_s": _rate(figures.bytes, figures.disk_s),
            "ahead_steps": ahead,
            "ahead_s": None if math.isnan(step_s) else ahead * step_s,
            "wanted_s": self.depth.seconds,
            "held_bytes": self.look.held_bytes,
        }
        temporary = folder / f"{FIGURES}.new"
        temporary.write_text(json.dumps(content), "utf-8")
        temporary.replace(folder / FIGURES)

    def _fetched_until(self) -> int:
        """The step up to which everything is there."""
        waiting = [self.look.next(), *self._running.values()]
        firsts = [self.look.first_use(block) for block in waiting if block is not None]
        return min(firsts, default=self.look.looked)


def _rate(count: int, seconds: float) -> float | None:
    """MB/s."""
    return count / 1e6 / seconds if seconds > 0 else None


def serve(pickled: bytes, plugins: list[str], stop: Connection) -> None:
    """The body of the process.

    Args:
        pickled: the `FetchTask`, by the process that started this one.
        plugins: to import before it is opened.
        stop: closed at its other end when the run is over.
    """
    exit_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # ranks that save still read
    import_plugins(plugins)
    fetcher = Fetcher(pickle.loads(pickled))
    fetcher.run(stop)
    os._exit(0)  # a transfer that nobody waits for may hang
