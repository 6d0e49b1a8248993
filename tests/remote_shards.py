"""Shards on a server of this machine, extents of them, and processes that read those."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
import zlib
from dataclasses import asdict
from pathlib import Path

from conftest import ROOT
from patience import patience
from servers import FaultyServer
from store_reader import content

from mmscale.config import CacheConfig
from mmscale.data.fetching.cache_room import SMALL_FILES
from mmscale.data.fetching.census import PAGE, footprint
from mmscale.data.fetching.extent import Extent, FieldCheck
from mmscale.data.index.index_files import Shard

SIZE = 200_000
PAUSE = time.sleep  # the real one


def make_shard(folder: Path, number: int, size: int = SIZE) -> Shard:
    """A file ``<number>.tar`` of bytes that no other has."""
    data = content(number, size)
    (folder / f"{number}.tar").write_bytes(data)
    return Shard(f"{number}.tar", size, hashlib.sha256(data).hexdigest(), 1)


def part_of(server: FaultyServer, shard: Shard, offset: int = 0, length: int = SIZE) -> Extent:
    return Extent(server.url, shard, offset, length)


def bytes_of(server: FaultyServer, extent: Extent) -> bytes:
    """What the extent holds, from the server's own disk."""
    return (server.folder / extent.shard.name).read_bytes()[extent.offset : extent.end]


def whole_check(server: FaultyServer, extent: Extent) -> list[FieldCheck]:
    """As if the extent were one field."""
    return [FieldCheck(extent.offset, extent.length, zlib.crc32(bytes_of(server, extent)))]


def cache_for(
    folder: Path, extents: float = 100, size: int = SIZE, retries: int = 2
) -> CacheConfig:
    """A cache with room for so many extents of ``size`` bytes, and a few folders."""
    room = extents * footprint(size) + 12 * PAGE + SMALL_FILES
    return CacheConfig(dir=str(folder / "cache"), max_gb=room / 1e9, retries=retries)


def kept(cache: CacheConfig) -> list[str]:
    """Names of the files under blocks/."""
    return sorted(path.name for path in Path(cache.dir, "blocks").glob("??/*"))


def copy_of(cache: CacheConfig, extent: Extent) -> Path:
    return Path(cache.dir, "blocks", extent.shard.sha256[:2], extent.name)


def start_reader(
    cache: CacheConfig, *extents: Extent, turns: int = 1, seed: int = 0, mount: str = ""
) -> subprocess.Popen[str]:
    """``store_reader`` in a process of its own, which has ``mount`` run before it in a namespace of
    its own.
    """
    wanted = [
        {"base": extent.base, "offset": extent.offset, "length": extent.length}
        | {"shard": asdict(extent.shard)}
        for extent in extents
    ]
    task = {"cache": asdict(cache), "extents": wanted, "turns": turns, "seed": seed}
    inside = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh"] if mount else []
    return subprocess.Popen(
        [*inside, sys.executable, "-m", "store_reader", json.dumps(task)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What the process printed."""
    out, err = process.communicate(timeout=patience(5))
    assert process.returncode == 0, err
    return out.strip()


def wait_until_blocked(process: subprocess.Popen[str]) -> None:
    """Return when the process waits for a file lock."""
    waiting = re.compile(rf"-> FLOCK +ADVISORY +(READ|WRITE) +{process.pid} ")
    for _ in range(int(patience(5) / 0.05)):
        assert process.poll() is None, "it ended instead of waiting"
        if waiting.search(Path("/proc/locks").read_text()):
            return
        PAUSE(0.05)
    raise AssertionError("it never waited")
