"""Is there space for checkpoints, for copies of remote shards, and in shared memory?"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmscale.checkpoint.towers import resolve_towers
from mmscale.config import Config
from mmscale.data.storage.shard_patterns import expand
from mmscale.data.storage.url import is_url
from mmscale.doctor.check import FAILED, OK, WARNING, HealthCheck, RankPlace, complain
from mmscale.model.count import count_parameters
from mmscale.train.prepare import expected_vocabulary

SHARED_MEMORY = Path("/dev/shm")
_TEXT_BYTES = 64  # of a position, over all index tensors of `Batch`
_SMALL = 1e9  # bytes; a container's 64 MB of shared memory are the usual mistake


@dataclass(frozen=True, kw_only=True)
class FolderSpace:
    """Free bytes of a folder; what a run must have there, and what it would like to have."""

    what: str
    path: str
    free: float
    needed: float
    wished: float
    # Why the folder cannot be used at all.
    fault: str = ""


def collect(config: Config | None, ranks: int) -> list[dict[str, Any]]:
    """`FolderSpace` of each folder that a run on this machine, of so many ranks, writes to."""
    spaces = (
        [_measure("shared memory", SHARED_MEMORY, *_shared(config, ranks))]
        if SHARED_MEMORY.exists()
        else []
    )
    if config is not None:
        size = checkpoint_bytes(config)
        spaces.append(
            _measure("checkpoints", Path(config.run.dir), size, (config.train.keep_last + 1) * size)
        )
        if any(
            is_url(name)
            for data_set in config.data.sets.values()
            for name in expand(data_set.shards)
        ):
            limit = config.data.cache.max_gb * 1e9
            spaces.append(
                _measure("shard cache", config.data.cache.folder(), 0, limit - _taken(config))
            )
    return [asdict(space) for space in spaces]


def checkpoint_bytes(config: Config) -> float:
    """One checkpoint: weights and two moments in fp32, and the average of the weights where there
    is one.
    """
    config = copy.deepcopy(config)
    config.model.vocab_size = expected_vocabulary(config)
    resolve_towers(config)
    return (
        count_parameters(config.model, config.media)["total"] * 4.0 * (4 if config.train.ema else 3)
    )


def assess(collected: Mapping[RankPlace, list[dict[str, Any]]]) -> HealthCheck:
    """``collected``: by one rank of each machine."""
    faults, least = {}, dict[str, float]()
    for place, spaces in collected.items():
        failures, warnings = [], []
        for space in (FolderSpace(**fields) for fields in spaces):
            least[space.what] = min(space.free, least.get(space.what, space.free))
            where = f"{space.what} ({space.path})"
            if space.fault:
                failures.append(f"{where}: {space.fault}")
            elif space.free < space.needed:
                failures.append(
                    f"{where}: {_size(space.free)} free, {_size(space.needed)} are needed"
                )
            elif space.free < space.wished:
                warnings.append(
                    f"{where}: {_size(space.free)} free, {_size(space.wished)} would be better"
                )
        if failures or warnings:
            faults[place] = (FAILED if failures else WARNING, ", ".join(failures + warnings))
    if faults:
        return complain("disk space", faults, collected)
    return HealthCheck(
        "disk space",
        OK,
        ", ".join(f"{_size(free)} for {what}" for what, free in least.items()) + " at least",
    )


def _measure(what: str, path: Path, needed: float, wished: float) -> FolderSpace:
    at = path.absolute()
    while not at.exists() and at != at.parent:
        at = at.parent
    try:
        free = float(shutil.disk_usage(at).free)
    except OSError as error:
        return FolderSpace(
            what=what,
            path=str(path),
            free=0.0,
            needed=needed,
            wished=wished,
            fault=f"cannot be looked at ({error.strerror})",
        )
    fault = "" if at.is_dir() and os.access(at, os.W_OK | os.X_OK) else f"{at} cannot be written to"
    return FolderSpace(
        what=what, path=str(path), free=free, needed=needed, wished=wished, fault=fault
    )


def _shared(config: Config | None, ranks: int) -> tuple[float, float]:
    """(needed, wished) bytes: the batches that loader workers hold ready."""
    if config is None or not config.data.workers:
        return 0.0, 0.0 if config else _SMALL
    media, data = config.media, config.data
    # A position is a piece of a picture or of a clip at the most.
    position = (
        max(3 * media.image_patch**2, 4 * media.frames_per_token * media.mel_bins) + _TEXT_BYTES
    )
    batch = config.train.micro_batch * data.seq_len * position
    needed = float(ranks * data.workers * data.prefetch * batch)
    return needed, 2 * needed


def _taken(config: Config) -> float:
    """Bytes the cache has already."""
    try:
        return float(
            sum(path.stat().st_size for path in config.data.cache.folder().glob("blocks/??/*"))
        )
    except OSError:
        return 0.0


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
