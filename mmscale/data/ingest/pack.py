"""`pack`: folders and tables to shards, by several processes, so that a killed one can be
continued.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmscale.config import MediaConfig
from mmscale.data.index.build_index import IndexPass, build_index
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.sample_keys import FIRST
from mmscale.data.ingest.pack_state import PackState
from mmscale.data.ingest.shard_writer import ShardFile, ShardWriter, shard_name
from mmscale.data.ingest.sources import Source, SourceSample, SourceSamples, open_source
from mmscale.data.worker_pool import TaskPool, WorkerPool
from mmscale.errors import UserError
from mmscale.prf import Permutation, derive_key

__all__ = ["ShardWriter", "pack"]


def pack(
    source: Path,
    out: Path,
    *,
    shuffle_seed: int = 0,
    samples_per_shard: int = 1000,
    shuffle_gb: float = 8.0,
    workers: int = 1,
    pool: TaskPool | None = None,
    media: MediaConfig | None = None,
    progress: bool = True,
) -> Manifest:
    """Write the samples of ``source`` to shards in ``out`` and index them.

    ``source`` is one of

    - a folder: files of one stem are one sample, the first sub-folder is its ``json.label``;
    - a ``.csv`` with a header row, a ``.jsonl`` of one object a line, a ``.parquet`` or a folder of
      Parquet files, with the columns that `rows.RowReader` describes.

    Media are stored as they are; those that come as bytes are named by their first bytes.

    Samples are shuffled by ``shuffle_seed``, so that neighbours in a shard are no relatives: over
    the whole source, except that Parquet of more than ``shuffle_gb`` (10^9 bytes, uncompressed) is
    shuffled in two levels. Its row groups are drawn in random order into portions of that size, and
    the samples of each portion are shuffled. One portion at a time is unpacked in ``out``, which
    needs as much room.

    ``workers`` processes write the shards (1: this process does), or a ``pool`` of others; the same
    source, seed and sizes give the same shards, byte for byte, whatever their number. Processes are
    started with the spawn method, so a script that asks for more than one needs the
    ``if __name__ == "__main__":`` guard.

    Shards and index appear in ``out`` only when all samples are written. Until then complete shards
    wait in ``out/.pack``, also after an error or a kill. The same call then continues: shards whose
    rows and files are unchanged (by size and time) are kept, a broken row can be mended in between.
    Where something changed that a complete shard holds, the call is refused; removing ``out/.pack``
    starts anew.

    Raises `UserError` naming the file or row and the remedy.
    """
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard: {samples_per_shard} is below 1; use about 1000")
    if not 0 < shuffle_gb < math.inf:
        raise UserError(
            f"shuffle_gb: {shuffle_gb} is no size above 0; use the room there is beside the shards"
        )
    media = media or MediaConfig()
    source, out = Path(source), Path(out)
    own = WorkerPool(workers)
    opened = open_source(source, media, out, shuffle_seed, int(shuffle_gb * 1e9))
    shards = _layout(opened, shuffle_seed, samples_per_shard)
    plan = {
        "samples": opened.portions[-1].stop,
        "shuffle_seed": shuffle_seed,
        "samples_per_shard": samples_per_shard,
        "shuffle_gb": shuffle_gb,
    }
    with PackState(out, plan, {shard.name: len(shard.positions) for shard in shards}) as state:
        _check_unchanged(opened, shards, state)
        try:
            with own:
                _write_shards(
                    source=opened,
                    shards=shards,
                    state=state,
                    pool=pool or own,
                    media=media,
                    progress=progress,
                )
        except BaseException:
            if state.finished and progress:
                done = f"{len(state.finished)} of {len(shards)} shards are complete"
                tqdm.write(f"{out}: {done}; the same command continues from there", file=sys.stderr)
            raise
        state.publish()
        # The keys that were written have no dots.
        how = IndexPass(pool=(pool or own) if pool or workers > 1 else None, key_dots=FIRST)
        with own:
            manifest = build_index(out, media, progress, how)
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


def _layout(source: Source, shuffle_seed: int, samples_per_shard: int) -> list[_ShardPlan]:
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
