"""The ranks' end of fetching ahead: starts the machine's fetcher, tells it how far a rank is."""

from __future__ import annotations

import json
import math
import multiprocessing
import pickle
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np

from mmscale.config import CacheConfig
from mmscale.data.fetching.block_store import BlockStore
from mmscale.data.fetching.run_folders import RUNS
from mmscale.data.planning.step_plan import Plan, PlannedSet
from mmscale.data.prefetching.fetch_ahead import FIGURES, PROGRESS, FetchTask, serve
from mmscale.data.prefetching.progress import RankProgress
from mmscale.errors import UserError
from mmscale.messages import warn
from mmscale.plugins import imported_plugins

_LOOKED_AT = 32  # groups of a set, for what a group weighs
_END_S = 2.0  # for the fetcher to remove its folder


class Prefetcher:
    """One rank's, on a machine whose first rank runs the fetcher. Close it.

    ``task`` None: every set is local, and there is nothing to do.
    """

    def __init__(self, task: FetchTask | None, local_rank: int) -> None:
        self._process: ForkServerProcess | None = None
        self._stop: Connection | None = None
        self._folder: Path | None = None
        self._progress: RankProgress | None = None
        if task is None:
            return
        self._folder = task.cache.folder() / RUNS / task.run
        self._progress = RankProgress(self._folder / PROGRESS, local_rank)
        if local_rank == 0:
            self._start(task)

    def consumed(self, step: int) -> None:
        """This rank has its batches of ``step``."""
        if self._progress is not None:
            self._progress.tell(step)
        if self._process is not None and not self._process.is_alive():
            self._process = None
            warn(
                "data: the process that fetches ahead has ended, perhaps for want of memory; "
                "loaders fetch what they read, which is slower"
            )

    def figures(self) -> dict[str, Any]:
        """What the machine's fetcher says of itself (`Fetcher`); nothing before it has begun."""
        if self._folder is None:
            return {}
        try:
            figures = json.loads((self._folder / FIGURES).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return figures if isinstance(figures, dict) else {}

    def close(self) -> None:
        """End the fetcher, if this rank started it."""
        if self._progress is not None:
            self._progress.close()
        process, self._process = self._process, None
        if self._stop is not None:
            self._stop.close()
            self._stop = None
        if process is not None:
            process.join(_END_S)
            if process.is_alive():
                process.kill()

    def _start(self, task: FetchTask) -> None:
        context = multiprocessing.get_context("forkserver")
        theirs, self._stop = context.Pipe(duplex=False)
        arguments = (pickle.dumps(task), imported_plugins(), theirs)
        self._process = context.Process(target=serve, args=arguments, name="fetch ahead")
        self._process.start()
        theirs.close()


def fetch_ahead(
    plan: Plan,
    cache: CacheConfig,
    *,
    node: range,
    world: int,
    local_rank: int,
    ranks: int,
    steps: range,
    run: str,
) -> Prefetcher:
    """Fetch ahead what a machine reads of remote sets. Called on every rank.

    Args:
        plan: of the run.
        cache: where, and how much.
        node: the machine's share of the readers, of ``world``.
        world: readers, each of which reads another part of a step.
        local_rank: among the ``ranks`` processes of the machine.
        ranks: processes of the machine.
        steps: that the run is to do.
        run: a name that no other living run has.

    Raises:
        UserError: the cache is smaller than what the machine reads at a time.
    """
    remote = [planned for planned in plan.sets if planned.dataset.extents is not None]
    if not remote or not len(steps):
        return Prefetcher(None, local_rank)
    _check_room(plan, remote, cache, node, world)
    task = FetchTask(
        plan=plan, cache=cache, node=node, world=world, ranks=ranks, steps=steps, run=run
    )
    for planned in remote:
        planned.dataset.follow(cache.folder() / RUNS / run)
    return Prefetcher(task, local_rank)


def _check_room(
    plan: Plan, remote: list[PlannedSet], cache: CacheConfig, node: range, world: int
) -> None:
    store = BlockStore(cache)
    per_rank = plan.sequences // world
    numbers = range(node.start * per_rank, node.stop * per_rank)
    needed = sum(_open_bytes(planned, numbers, plan.sequences, store) for planned in remote)
    room = store.capacity()
    if needed > room:
        least = math.ceil((needed - room + cache.max_gb * 1e9) / 1e6) / 1e3
        raise UserError(
            f"data.cache.max_gb: {cache.max_gb:g} is less than this machine reads at a time; raise "
            f"it to {least:g}, or lower data.lanes, data.window_groups or data.group_blocks (which "
            "changes the order)"
        )


def _open_bytes(planned: PlannedSet, numbers: range, per_step: int, store: BlockStore) -> int:
    """What the open windows of the lanes of ``numbers`` weigh, and the block that comes next."""
    extents = planned.dataset.extents
    assert extents is not None, "a local set"
    layout = planned.layout
    looked_at = np.unique(np.linspace(0, layout.groups - 1, _LOOKED_AT).astype(np.int64))
    weights = []
    largest = 0
    for members in layout.members(looked_at.tolist()):
        blocks = np.unique(members // layout.block).tolist()
        sizes = [sum(map(store.footprint, extents.of_block(block))) for block in blocks]
        weights.append(sum(sizes))
        largest = max(largest, *sizes)
    lanes = {number * planned.lanes // per_step for number in numbers}
    groups = min(len(lanes) * planned.window_groups, layout.groups)
    return math.ceil(groups * float(np.mean(weights))) + largest
