"""The cache under real processes: fetched once, checked, and no worse for being killed."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import patience
from remote_shards import (
    SIZE,
    bytes_of,
    cache_for,
    copy_of,
    finish,
    kept,
    make_shard,
    part_of,
    start_reader,
    wait_until_blocked,
    whole_check,
)
from servers import FaultyServer, serve

from mmscale.config import CacheConfig
from mmscale.data.fetching import extent_source, followed_run, local_copies, run_folders
from mmscale.data.fetching.block_store import PATIENCE, BlockStore
from mmscale.data.fetching.extent import Extent
from mmscale.data.index.index_files import Shard
from mmscale.data.storage import remote_file
from mmscale.data.storage.remote_file import RemoteFault
from mmscale.errors import UserError


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served") as running:
        yield running


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file.time, "sleep", lambda _: None)
    monkeypatch.setattr(local_copies, "_MARK_AFTER_NS", 0)


def read(store: BlockStore, extent: Extent) -> bytes:
    return store.read(extent, extent.offset, extent.length)


@pytest.fixture
def extents(server: FaultyServer) -> list[Extent]:
    """Each the middle of another shard."""
    return [part_of(server, make_shard(server.folder, n, 3 * SIZE), SIZE) for n in range(8)]


def test_fetched_once_then_read_without_the_server(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache, extent = cache_for(tmp_path), extents[0]
    assert not BlockStore(cache).has(extent)
    for fetched in (SIZE, 0):
        store = BlockStore(cache)
        assert read(store, extent) == bytes_of(server, extent)
        assert store.read(extent, SIZE + 10, 7) == bytes_of(server, extent)[10:17]
        assert store.figures.bytes == fetched and store.has(extent)
    assert copy_of(cache, extent).read_bytes() == bytes_of(server, extent)
    assert kept(cache) == [extent.name] and server.sent == {"0.tar": SIZE}
    assert server.requests == [("0.tar", f"bytes={SIZE}-{2 * SIZE - 1}")]


def test_fetch_says_what_it_fetched(tmp_path: Path, extents: list[Extent]) -> None:
    store = BlockStore(cache_for(tmp_path))
    assert [store.fetch(extent) for extent in (*extents[:2], extents[0])] == [SIZE, SIZE, 0]
    assert (store.figures.extents, store.figures.bytes, store.figures.requests) == (2, 2 * SIZE, 2)
    assert store.figures.source_s > 0 < store.figures.disk_s


def test_no_file_stays_open(tmp_path: Path, extents: list[Extent]) -> None:
    store = BlockStore(cache_for(tmp_path))
    for extent in extents:
        read(store, extent)
        read(store, extent)
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    targets = [os.readlink(link) for link in links if os.path.lexists(link)]
    assert not [target for target in targets if str(tmp_path / "cache") in target]


def test_a_copy_that_was_cut_short_is_fetched_again(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path)
    for left in (1000, 0):
        read(BlockStore(cache), extents[0])
        os.truncate(copy_of(cache, extents[0]), left)
        assert read(BlockStore(cache), extents[0]) == bytes_of(server, extents[0])
    assert server.counts() == {"0.tar": 3}


def test_a_damaged_copy_is_fetched_again_once_in_a_while(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    store = BlockStore(cache_for(tmp_path))
    read(store, extents[0])
    assert store.mend(extents[0]) and not store.has(extents[0])
    assert read(store, extents[0]) == bytes_of(server, extents[0])
    # Whoever finds it damaged again does not fetch it for ever.
    assert not any(store.mend(extents[0]) for _ in range(PATIENCE))
    assert store.has(extents[0]) and store.mend(extents[0])


def test_what_arrives_wrong_is_asked_for_again(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache, extent = cache_for(tmp_path), extents[0]
    store = BlockStore(cache)
    server.faults.append(("0.tar", "corrupt", SIZE + 100))
    assert store.fetch(extent, whole_check(server, extent)) == 2 * SIZE
    assert read(store, extent) == bytes_of(server, extent) and kept(cache) == [extent.name]
    assert server.counts() == {"0.tar": 2}


def test_what_arrives_wrong_twice_is_kept_for_the_rest_of_it(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache, extent = cache_for(tmp_path), extents[0]
    server.always["0.tar"] = ("corrupt", SIZE + 100)
    expected, checks = bytes_of(server, extent), whole_check(server, extent)
    assert BlockStore(cache).fetch(extent, checks) == 2 * SIZE
    store = BlockStore(cache)  # of another process
    assert kept(cache) == [f"{extent.name}.bad"] and store.has(extent)
    assert store.read(extent, SIZE + 101, 50) == expected[101:151]
    assert store.read(extent, SIZE + 100, 1) != expected[100:101]
    assert not any(store.mend(extent) for _ in range(PATIENCE))
    assert server.counts() == {"0.tar": 2}
    server.always.clear()
    assert store.mend(extent)
    assert store.fetch(extent, checks) == SIZE and kept(cache) == [extent.name]


def test_a_new_start_asks_again_for_what_arrived_wrong(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path)
    server.faults.extend([("0.tar", "corrupt", SIZE)] * 2)
    BlockStore(cache).fetch(extents[0], whole_check(server, extents[0]))
    BlockStore(cache).fetch(extents[1], whole_check(server, extents[1]))
    BlockStore(cache).open_folder([])
    assert kept(cache) == [extents[1].name]


def test_same_name_other_content_is_another_copy(tmp_path: Path, server: FaultyServer) -> None:
    store = BlockStore(cache_for(tmp_path))
    first = part_of(server, make_shard(server.folder, 1))
    before = read(store, first)
    (server.folder / "1.tar").write_bytes(bytes(SIZE))
    second = Extent(server.url, Shard("1.tar", SIZE, "ab" * 32, 1), 0, SIZE)
    assert read(store, second) == bytes(SIZE)
    assert read(store, first) == before


def test_a_shard_of_another_size_is_refused(tmp_path: Path, server: FaultyServer) -> None:
    shard = make_shard(server.folder, 1)
    shorter = Shard(shard.name, SIZE + 1, shard.sha256, 1)
    for length in (100, SIZE + 1):
        store = BlockStore(cache_for(tmp_path))
        with pytest.raises(
            RemoteFault, match=rf"^it has {SIZE} bytes, but {SIZE + 1} when it was indexed$"
        ):
            store.fetch(Extent(server.url, shorter, 0, length))
    assert server.counts() == {"1.tar": 4}  # twice each: a proxy may have had an old one
    assert kept(cache_for(tmp_path)) == []


def test_transfer_survives_drops(tmp_path: Path, server: FaultyServer) -> None:
    extent = part_of(server, make_shard(server.folder, 1, 4_000_000), 500_000, 3_000_000)
    for fault in ("drop", "cut", "refuse"):
        server.faults.append(("1.tar", fault, 1_000_000))
    server.faults.append(("1.tar", "status", 503))
    data = read(BlockStore(cache_for(tmp_path, retries=4)), extent)
    assert data == bytes_of(server, extent)


def test_a_failure_of_a_shard_is_remembered_for_a_while(
    tmp_path: Path, server: FaultyServer
) -> None:
    store, shard = BlockStore(cache_for(tmp_path)), make_shard(server.folder, 1)
    server.always["1.tar"] = ("status", 404)
    for number in range(PATIENCE + 1):
        with pytest.raises(RemoteFault, match="HTTP 404 Not Found"):
            store.fetch(part_of(server, shard, number, 9))
    assert len(server.requests) == 1
    server.always.clear()  # it comes back, and is found when patience is over
    assert store.fetch(part_of(server, shard, 0, 9)) == 9
    assert len(kept(cache_for(tmp_path))) == 1


def test_what_is_there_of_a_shard_that_is_gone_is_read(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    store, (first, *_) = BlockStore(cache_for(tmp_path)), extents
    store.fetch(first)
    server.always["0.tar"] = ("status", 404)
    with pytest.raises(RemoteFault, match="HTTP 404 Not Found"):
        store.fetch(part_of(server, first.shard, 0, 9))
    assert read(store, first) == bytes_of(server, first)
    with pytest.raises(RemoteFault, match="HTTP 404 Not Found"):
        store.fetch(part_of(server, first.shard, 0, 10))
    assert len(server.requests) == 2


def test_processes_that_race_fetch_once(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path)
    server.faults.append(("0.tar", "slow", 1000))
    first = start_reader(cache, extents[0])
    assert server.reached.wait(patience(5))
    waiting = [start_reader(cache, extents[0]) for _ in range(3)]
    for reader in waiting:
        wait_until_blocked(reader)
    server.go_on.set()
    fetched = [finish(reader) for reader in (first, *waiting)]
    assert fetched == [f"{SIZE}", "0", "0", "0"]
    assert server.sent == {"0.tar": SIZE} and kept(cache) == [extents[0].name]


def test_waiting_processes_share_the_failure(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path)
    server.faults.append(("0.tar", "hold", 1000))
    failing = start_reader(cache, extents[0])
    assert server.reached.wait(patience(5))
    waiting = start_reader(cache, extents[0])
    wait_until_blocked(waiting)
    server.always["0.tar"] = ("status", 403)
    server.go_on.set()
    for reader in (failing, waiting):
        _, err = reader.communicate(timeout=patience(5))
        assert reader.returncode and "RemoteFault: HTTP 403 Forbidden" in err
    assert len(server.requests) == 2 and kept(cache) == []


def test_a_killed_transfer_is_taken_over(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path, 1)  # there is room for no second part
    server.faults.append(("0.tar", "slow", 1000))
    victim = start_reader(cache, extents[0])
    assert server.reached.wait(patience(5))
    assert kept(cache) == [f"{extents[0].name}.part"]
    survivor = start_reader(cache, extents[0])
    wait_until_blocked(survivor)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    # While the server still holds the victim's connection.
    assert finish(survivor) == f"{SIZE}"
    server.go_on.set()
    assert kept(cache) == [extents[0].name]


def test_least_recently_used_goes_first(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path, 3)
    store = BlockStore(cache)
    for used in (0, 1, 2, 0, 3):
        read(store, extents[used])
    assert kept(cache) == sorted(extents[n].name for n in (0, 2, 3))
    read(store, extents[1])
    assert kept(cache) == sorted(extents[n].name for n in (0, 1, 3))
    assert server.counts() == {"0.tar": 1, "1.tar": 2, "2.tar": 1, "3.tar": 1}


def test_readers_go_on_when_their_copy_is_removed(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    stores = [BlockStore(cache_for(tmp_path, 1)) for _ in range(2)]
    for at in range(SIZE, SIZE + 500, 100):
        for number, store in enumerate(stores):
            data = store.read(extents[number], at, 100)
            assert data == bytes_of(server, extents[number])[at - SIZE :][:100]
    assert server.counts() == {"0.tar": 5, "1.tar": 5}  # room for one alone
    again = pickle.loads(pickle.dumps(stores[0]))
    assert read(again, extents[0]) == bytes_of(server, extents[0])


def test_dropped_and_fetched_again(tmp_path: Path, extents: list[Extent]) -> None:
    cache = cache_for(tmp_path, 1)
    store = BlockStore(cache)
    assert store.drop(extents[0])  # is not there
    for extent in extents[:3]:
        assert store.fetch(extent) == SIZE and store.drop(extent) and not store.has(extent)
    store.fetch(extents[0])
    with open(copy_of(cache, extents[0]), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as who reads it does
        assert not store.drop(extents[0]) and store.has(extents[0])
    assert store.drop(extents[0])


def test_a_cache_that_is_too_small_says_what_works(tmp_path: Path, server: FaultyServer) -> None:
    extent = part_of(server, make_shard(server.folder, 1, 3_000_000), 0, 2_500_000)
    small = CacheConfig(dir=str(tmp_path / "cache"), max_gb=0.002, retries=0)
    words = r"^data\.cache\.max_gb: 0\.002 is less than .*1\.tar needs; raise it to (\S+) or more$"
    store = BlockStore(small)
    for act in (lambda: store.open_folder([extent]), lambda: store.fetch(extent)):
        with pytest.raises(UserError, match=words) as caught:
            act()
        least = float(str(caught.value).split()[-3])
        enough = CacheConfig(dir=small.dir, max_gb=least, retries=0)
        assert BlockStore(enough).fetch(extent) == 2_500_000
        assert BlockStore(enough).drop(extent)
        with pytest.raises(UserError):
            BlockStore(CacheConfig(dir=small.dir, max_gb=least - 0.001)).fetch(extent)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        UserError,
        match=r"^data\.cache\.dir: .*file/cache/blocks cannot be used \(Not a directory\)",
    ):
        BlockStore(CacheConfig(dir=str(tmp_path / "file" / "cache"))).open_folder([])


def test_a_full_disk_is_a_fault_with_its_reason(
    tmp_path: Path, server: FaultyServer, extents: list[Extent], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = cache_for(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(extent_source, "pwrite_fully", full)
        with pytest.raises(RemoteFault, match=r"^the cache .*/cache: No space left on device$"):
            BlockStore(cache).fetch(extents[0])
    assert kept(cache) == []
    assert BlockStore(cache).fetch(extents[0]) == SIZE


def can_mount() -> bool:
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and not subprocess.run(probe, check=False).returncode


needs_mount = pytest.mark.skipif(not can_mount(), reason="needs mounts of a user's own (unshare)")


@needs_mount
def test_a_disk_that_is_really_full(tmp_path: Path, extents: list[Extent]) -> None:
    cache = cache_for(tmp_path)
    os.mkdir(cache.dir)
    reader = start_reader(cache, *extents, mount=f"mount -t tmpfs -o size=500k none {cache.dir}")
    _, err = reader.communicate(timeout=patience(5))
    assert reader.returncode == 1
    assert f"RemoteFault: the cache {cache.dir}: No space left on device" in err


@needs_mount
def test_a_cache_that_became_read_only_is_read(
    tmp_path: Path, server: FaultyServer, extents: list[Extent]
) -> None:
    cache = cache_for(tmp_path)
    for extent in extents[:2]:
        BlockStore(cache).fetch(extent)
    read_only = f"mount --bind {cache.dir} {cache.dir} && mount -o remount,bind,ro {cache.dir}"
    assert finish(start_reader(cache, *extents[:2], mount=read_only)) == "0"
    reader = start_reader(cache, extents[2], mount=read_only)
    _, err = reader.communicate(timeout=patience(5))
    assert f"RemoteFault: the cache {cache.dir}: Read-only file system" in err
    assert server.counts() == {"0.tar": 1, "1.tar": 1}


def test_a_reader_waits_for_the_whole_shard_once_the_run_learns_that_there_are_no_ranges(
    server: FaultyServer, extents: list[Extent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began to wait for a part, which will never come."""
    server.ranges = False
    cache = cache_for(tmp_path)
    runner, reader = BlockStore(cache), BlockStore(cache)
    folder = runner.start_run("run")
    reader.follow(folder)
    waits, got = threading.Event(), list[bytes]()

    def look(path: Path) -> bool:
        waits.set()
        return run_folders.is_alive(path)

    monkeypatch.setattr(followed_run, "is_alive", look)
    reading = threading.Thread(target=lambda: got.append(read(reader, extents[0])), daemon=True)
    reading.start()
    assert waits.wait(patience(5))
    runner.fetch(extents[0])
    reading.join(patience(5))
    assert got == [bytes_of(server, extents[0])] and not reader.figures.extents
