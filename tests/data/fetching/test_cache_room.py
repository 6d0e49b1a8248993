"""The bound holds: whatever is fetched, waited for, killed or removed, at every moment."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from disk_watch import bytes_at_once
from patience import patience
from remote_shards import (
    PAUSE,
    SIZE,
    cache_for,
    copy_of,
    finish,
    kept,
    make_shard,
    part_of,
    start_reader,
    wait_until_blocked,
)
from servers import FaultyServer, serve

from mmscale.config import CacheConfig
from mmscale.data.fetching import cache_room
from mmscale.data.fetching.block_store import BlockStore
from mmscale.data.fetching.cache_room import CacheRoom
from mmscale.data.fetching.census import PAGE, footprint, remove_locked, take_census
from mmscale.data.fetching.extent import Extent
from mmscale.data.planning.array_cache import ArrayCache
from mmscale.data.storage.file_lock import locked
from mmscale.data.storage.remote_file import RemoteFault
from mmscale.errors import UserError


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served") as running:
        yield running


@pytest.fixture
def extents(server: FaultyServer) -> list[Extent]:
    """The parts of one shard, one after another."""
    shard = make_shard(server.folder, 1, 20 * SIZE)
    return [part_of(server, shard, number * SIZE) for number in range(20)]


def ledger(cache: CacheConfig) -> int:
    return int.from_bytes(Path(cache.dir, "ledger").read_bytes(), "little")


def bound(cache: CacheConfig) -> int:
    return int(cache.max_gb * 1e9)


@contextmanager
def watched(cache: CacheConfig) -> Iterator[list[int]]:
    """Fills in [most bytes that the folder took, looks]."""
    result: list[int] = []
    watcher = subprocess.Popen(
        [sys.executable, "-m", "disk_watch", cache.dir],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watcher.stdout is not None and watcher.stdout.readline() == "looking\n"
    try:
        yield result
    finally:
        out, _ = watcher.communicate("", timeout=patience(5))
        result.extend(map(int, out.split()))


def test_the_watcher_sees_what_is_deleted_and_open(tmp_path: Path) -> None:
    (folder := tmp_path / "cache" / "a").mkdir(parents=True)
    with (
        watched(CacheConfig(dir=str(tmp_path / "cache"))) as seen,
        open(folder / "file", "wb") as file,
    ):
        os.unlink(folder / "file")
        file.write(bytes(50_000))
        file.flush()
        PAUSE(0.5)
    assert 50_000 < seen[0] < 100_000


@pytest.mark.parametrize("room", [1, 4.5])
def test_never_more_than_the_bound(
    tmp_path: Path, server: FaultyServer, extents: list[Extent], room: float
) -> None:
    cache = cache_for(tmp_path, room, retries=9)
    BlockStore(cache).open_folder([])
    server.faults.extend([(".tar", "cut", 70_000), (".tar", "drop", 9)] * 2)
    server.faults.append((".tar", "corrupt", 5))
    with watched(cache) as seen:
        readers = [start_reader(cache, *extents, turns=2, seed=seed) for seed in range(3)]
        fetched = sum(int(finish(reader)) for reader in readers)
    most, looks = seen
    assert looks > 10 and fetched >= 20 * SIZE
    assert SIZE < most <= bound(cache)
    assert take_census(Path(cache.dir)).used <= ledger(cache) <= bound(cache)
    assert len(kept(cache)) <= room


def test_nothing_moves_while_somebody_counts(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    """Else who counts could see it in neither place."""
    cache = cache_for(tmp_path)
    server.faults.append(("1.tar", "slow", SIZE - 1))
    reader = start_reader(cache, extents[0])
    assert server.reached.wait(patience(5))
    with CacheRoom(cache).held():
        server.go_on.set()
        wait_until_blocked(reader)
        assert kept(cache) == [f"{extents[0].name}.part"]
    assert finish(reader) == f"{SIZE}" and kept(cache) == [extents[0].name]


def test_everything_in_the_folder_counts(
    tmp_path: Path, extents: list[Extent], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_for(tmp_path, 5)
    store, room = BlockStore(cache), CacheRoom(cache)
    for extent in extents[:5]:
        store.fetch(extent)
    derived = ArrayCache([Path(cache.dir, "derived")], room)
    array = derived.save("numbers.npy", np.arange(2 * SIZE // 8)).array
    assert array[-1] == 2 * SIZE // 8 - 1 and len(kept(cache)) == 3
    (copied := Path(cache.dir, "indexes", "x")).mkdir(parents=True)
    with open(copied / "column", "wb") as file:
        room.claim(file.fileno(), SIZE, "an index")
    assert len(kept(cache)) == 2 and take_census(Path(cache.dir)).used <= ledger(cache)
    assert bytes_at_once(cache.dir) <= bound(cache)
    with pytest.raises(UserError, match=r"less than the array more\.npy needs; raise it to 0\.002"):
        derived.save("more.npy", np.arange(3 * SIZE // 8))
    store.fetch(extents[9])
    assert len(kept(cache)) == 2


def test_an_array_outside_of_the_cache_needs_no_room_there(tmp_path: Path) -> None:
    derived = ArrayCache([tmp_path / "index"], CacheRoom(cache_for(tmp_path, 1)))
    assert derived.save("x.npy", np.arange(SIZE)).array[-1] == SIZE - 1
    assert not (tmp_path / "cache").exists()


def test_room_promised_to_others_is_waited_for(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path, 1)
    server.faults.append(("1.tar", "slow", 1000))
    first = start_reader(cache, extents[0])
    assert server.reached.wait(patience(5))
    second = start_reader(cache, extents[1])
    waits_for_room(cache, extents[1])
    assert len(server.requests) == 1
    server.go_on.set()
    assert finish(first) == finish(second) == f"{SIZE}"
    assert kept(cache) == [extents[1].name]


def waits_for_room(cache: CacheConfig, extent: Extent) -> None:
    """Return when somebody wants to fetch ``extent`` and has not begun."""
    part = Path(cache.dir, "blocks", extent.shard.sha256[:2], f"{extent.name}.part")
    for _ in range(int(patience(5) / 0.02)):
        if part.exists():
            return
        PAUSE(0.02)
    raise AssertionError("nobody wanted it")


def test_what_a_living_run_pins_is_left(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path, 3)
    ahead, other = BlockStore(cache), BlockStore(cache)
    run = ahead.start_run("one")
    for extent in extents[:2]:
        ahead.pin(extent)
        ahead.fetch(extent)
    for extent in extents[5:8]:
        other.fetch(extent)
        assert kept(cache) == sorted([extents[0].name, extents[1].name, extent.name])
    ahead.unpin(extents[0])
    other.fetch(extents[9])
    other.fetch(extents[10])
    assert extents[0].name not in kept(cache) and extents[1].name in kept(cache)
    ahead.end_run()
    assert not run.exists()
    for extent in extents[11:14]:
        other.fetch(extent)
    assert extents[1].name not in kept(cache)


def test_room_beside_pins_is_waited_for(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path, 1)
    ahead = BlockStore(cache)
    ahead.start_run("one")
    ahead.pin(extents[0])
    ahead.fetch(extents[0])
    reader = start_reader(cache, extents[1])
    waits_for_room(cache, extents[1])
    assert kept(cache)[0] == extents[0].name and len(server.requests) == 1
    ahead.unpin(extents[0])
    assert finish(reader) == f"{SIZE}"


RUN = """
import sys, time
from mmscale.config import CacheConfig
from mmscale.data.fetching.block_store import BlockStore
store = BlockStore(CacheConfig(dir=sys.argv[1], max_gb=float(sys.argv[2])))
store.start_run("one")
(store.folder / "runs" / "one" / "pins" / sys.argv[3]).touch()
print("pinned", flush=True)
sys.stdin.read()
"""


def test_a_dead_run_pins_nothing(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path, 1)
    store = BlockStore(cache)
    store.fetch(extents[0])
    command = [sys.executable, "-c", RUN, cache.dir, str(cache.max_gb), extents[0].name]
    run = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None and run.stdout.readline() == "pinned\n"
    assert store.capacity() < 2 * footprint(SIZE)
    reader = start_reader(cache, extents[1])
    waits_for_room(cache, extents[1])
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert finish(reader) == f"{SIZE}" and kept(cache) == [extents[1].name]
    assert os.listdir(Path(cache.dir, "runs")) == []
    assert store.start_run("one").is_dir()  # the name is free again


def test_what_the_dead_leave_takes_no_room(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path, 1.2)
    server.faults.append(("1.tar", "slow", 1000))
    victim = start_reader(cache, extents[0])
    assert server.reached.wait(patience(5))
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    (half := Path(cache.dir, "indexes", "x.part", "index")).mkdir(parents=True)
    (half / "keys.npy").write_bytes(bytes(SIZE))
    (Path(cache.dir) / "derived").mkdir()
    (Path(cache.dir) / "derived" / ".a.npy.1.tmp").write_bytes(bytes(SIZE))
    with locked(half.parent.with_suffix(".lock")):  # somebody copies it
        CacheRoom(cache).recount()
        assert (half / "keys.npy").exists()
    assert kept(cache) == [] and os.listdir(Path(cache.dir, "derived")) == []
    assert BlockStore(cache).fetch(extents[1]) == SIZE
    assert not half.exists() and kept(cache) == [extents[1].name]


def test_a_lost_or_damaged_ledger_is_made_anew(tmp_path: Path, extents: list[Extent]) -> None:
    cache = cache_for(tmp_path, 2)
    store = BlockStore(cache)
    store.fetch(extents[0])
    for content in (b"", b"\0" * 7, (1 << 60).to_bytes(8, "little")):
        Path(cache.dir, "ledger").write_bytes(content)
        store.drop(extents[0])
        store.fetch(extents[0])
        store.fetch(extents[1])
        used = take_census(Path(cache.dir)).used
        assert used <= ledger(cache) <= used + 2 * PAGE and len(kept(cache)) == 2
        store.drop(extents[1])


def test_a_lower_bound_is_kept_from_the_next_start_on(
    tmp_path: Path, extents: list[Extent]
) -> None:
    for extent in extents[:8]:
        BlockStore(cache_for(tmp_path, 8)).fetch(extent)
    lower = cache_for(tmp_path, 3)
    BlockStore(lower).open_folder([])
    assert len(kept(lower)) == 3 and bytes_at_once(lower.dir) <= bound(lower)


def test_what_failed_is_counted_back_once(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path, 5, retries=0)
    for number, fault in enumerate([("status", 404), ("cut", 1000), ("refuse", None)]):
        BlockStore(cache).fetch(extents[number])
        server.always["1.tar"] = fault
        with pytest.raises(RemoteFault):
            BlockStore(cache).fetch(extents[9])
        server.always.clear()
        used = take_census(Path(cache.dir)).used
        assert used <= ledger(cache) <= used + 2 * PAGE


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path, extents: list[Extent]) -> None:
    cache = cache_for(tmp_path, 1)
    os.mkdir(cache.dir)
    Path(cache.dir, "mine").write_bytes(bytes(5 * SIZE))
    for extent in extents[:3]:
        BlockStore(cache).fetch(extent)
    assert Path(cache.dir, "mine").stat().st_size == 5 * SIZE and len(kept(cache)) == 1


def test_many_victims_are_found_in_one_look(
    tmp_path: Path, extents: list[Extent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_room, "_ALL_PER_SPARE", 5)
    cache = cache_for(tmp_path, 10)
    store = BlockStore(cache)
    for extent in extents[:11]:
        store.fetch(extent)
    assert len(kept(cache)) == 8  # 3 went: one for the eleventh, two that are spared a look


def test_what_is_read_is_not_removed(tmp_path: Path, extents: list[Extent]) -> None:
    cache = cache_for(tmp_path, 2)
    store = BlockStore(cache)
    for extent in extents[:2]:
        store.fetch(extent)
    with open(copy_of(cache, extents[0])) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        store.fetch(extents[2])
        assert kept(cache) == sorted([extents[0].name, extents[2].name])


def test_who_opened_what_is_being_removed_asks_again(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path)
    BlockStore(cache).fetch(extents[0])
    with locked(copy_of(cache, extents[0])) as handle:
        reader = start_reader(cache, extents[0])
        wait_until_blocked(reader)
        assert remove_locked(copy_of(cache, extents[0]), handle) == footprint(SIZE)
    assert finish(reader) == f"{SIZE}" and len(server.requests) == 2


def test_what_is_removed_takes_no_room_although_it_is_open(
    tmp_path: Path, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path)
    store = BlockStore(cache)
    store.fetch(extents[0])
    with open(copy_of(cache, extents[0]), "rb") as file:
        assert store.drop(extents[0])
        assert os.fstat(file.fileno()).st_size == os.fstat(file.fileno()).st_blocks == 0
