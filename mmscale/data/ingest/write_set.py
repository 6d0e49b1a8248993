"""One set of samples to shards and an index, by several processes, so that a killed one can be
continued.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmscale.config import MediaConfig
from mmscale.data.index.build_index import IndexPass, build_index
from mmscale.data.index.manifest import Manifest
from mmscale.data.ingest.pack_state import PackState
from mmscale.data.ingest.shard_writer import ShardFile, shard_name
from mmscale.data.ingest.sources import Source, SourceSample, SourceSamples
from mmscale.data.worker_pool import TaskPool
from mmscale.errors import UserError
from mmscale.prf import Permutation, derive_key


@dataclass(frozen=True, kw_only=True)
class SetWriter:
    """How sets are written: see `pack.pack`.

    Raises `UserError` for sizes that are none.
    """

    shuffle_seed: int
    samples_per_shard: int
    shuffle_gb: float
    pool: TaskPool
    index_pass: IndexPass
    media: MediaConfig
    progress: bool

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise UserError(
                f"samples_per_shard: {self.samples_per_shard} is below 1; use about 1000"
            )
        if not 0 < self.shuffle_gb < math.inf:
            raise UserError(
                f"shuffle_gb: {self.shuffle_gb} is no size above 0; use the room there is beside "
                "the shards"
            )

    def plan(self, source: Source) -> dict[str, int | float]:
        """What decides the bytes of the shards besides the samples themselves."""
        return {
            "samples": source.portions[-1].stop,
            "shuffle_seed": self.shuffle_seed,
            "samples_per_shard": self.samples_per_shard,
            "shuffle_gb": self.shuffle_gb,
        }

    def write(
        self, source: Source, out: Path, on_complete: Callable[[], None] = lambda: None
    ) -> Manifest:
        """The samples of ``source`` as shards in ``out``, with an index.

        ``on_complete`` is called when both stand there, before the last trace of the pack goes.
        """
        shards = _shard_plans(source, self.shuffle_seed, self.samples_per_shard)
        samples = {shard.name: len(shard.positions) for shard in shards}
        with PackState(out, self.plan(source), samples) as state:
            _check_unchanged(source, shards, state)
            try:
                _write_shards(
                    source=source,
                    shards=shards,
                    state=state,
                    pool=self.pool,
                    media=self.media,
                    progress=self.progress,
                )
            except BaseException:
                if state.finished and self.progress:
                    done = f"{len(state.finished)} of {len(shards)} shards are complete"
                    tqdm.write(
                        f"{out}: {done}; the same command continues from there", file=sys.stderr
                    )
                raise
            state.publish()
            manifest = build_index(out, self.media, self.progress, self.index_pass)
            on_complete()
            state.close()
        return manifest


@dataclass(frozen=True)
class _ShardPlan:
    """A shard to be written: ``positions`` of the shuffled order of ``portion``."""

    name: str
    portion: range
    positions: range
    order: Permutation

    def samples(self) -> list[int]:
        """The numbers of its samples, in the order in which they stand in it."""
        drawn = self.order(np.arange(self.positions.start, self.positions.stop))
        return (self.portion.start + drawn).tolist()


def _shard_plans(source: Source, shuffle_seed: int, samples_per_shard: int) -> list[_ShardPlan]:
    """All shards, in order. A shard never crosses portions, so the last of each may be smaller."""
    shards: list[_ShardPlan] = []
    for number, portion in enumerate(source.portions):
        key = derive_key("pack", shuffle_seed, *([number] if number else []))
        order = Permutation(key, len(portion))
        for first in range(0, len(portion), samples_per_shard):
            positions = range(first, min(first + samples_per_shard, len(portion)))
            shards.append(_ShardPlan(shard_name(len(shards)), portion, positions, order))
    return shards


def _check_unchanged(source: Source, shards: list[_ShardPlan], state: PackState) -> None:
    """Raise `UserError` naming the first sample that is not what it was when its shard was
    written.
    """
    for shard in shards:
        if shard.name in state.finished:
            samples = shard.samples()
            changed = state.finished[shard.name].first_change(_fingerprints(source, samples))
            if changed is not None:
                raise UserError(
                    f"{source.where(samples[changed])}: changed since it was packed into "
                    f"{shard.name}; restore it, or remove {state.folder} to start anew"
                )


def _write_shards(
    *,
    source: Source,
    shards: list[_ShardPlan],
    state: PackState,
    pool: TaskPool,
    media: MediaConfig,
    progress: bool,
) -> None:
    """Write the shards that ``state`` lacks."""
    kept = sum(len(shard.positions) for shard in shards if shard.name in state.finished)
    if kept and progress:
        tqdm.write(
            f"{state.folder}: {len(state.finished)} complete shards are kept", file=sys.stderr
        )
    total = sum(len(shard.positions) for shard in shards)
    with tqdm(total=total, initial=kept, desc="pack", unit="sample", disable=not progress) as bar:
        for portion, of_portion in groupby(shards, key=lambda shard: shard.portion):
            missing = [shard for shard in of_portion if shard.name not in state.finished]
            if not missing:
                continue
            with source.load(portion, pool, state.folder, progress) as samples:
                tasks = (_task(shard, samples, state.folder, media) for shard in missing)
                for number, written in pool.run(_write_shard, tasks, len(missing)):
                    shard = missing[number]
                    state.add(shard.name, written, _fingerprints(source, shard.samples()))
                    bar.update(len(shard.positions))


@dataclass(frozen=True)
class _ShardJob:
    """What a worker is given: the samples of one shard, and the folder for it."""

    name: str
    samples: list[SourceSample]
    folder: Path
    media: MediaConfig


def _task(shard: _ShardPlan, samples: SourceSamples, folder: Path, media: MediaConfig) -> _ShardJob:
    chosen = [samples[number - shard.portion.start] for number in shard.samples()]
    return _ShardJob(shard.name, chosen, folder, media)


def _write_shard(task: _ShardJob) -> Path:
    """Write and sync one shard under a name of this process; returns its path."""
    # A worker of a killed pack may still be at the same shard for a moment.
    path = task.folder / f"{task.name}.{os.getpid()}.tmp"
    shard = ShardFile(path)
    try:
        for sample in task.samples:
            shard.add(sample.encode(task.media))
        shard.finish()
    finally:
        shard.close()
    return path


def _fingerprints(source: Source, samples: list[int]) -> bytes:
    return b"".join(source.fingerprint(number) for number in samples)
