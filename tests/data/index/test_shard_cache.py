"""The cache under real processes: fetched once, checked, bounded, and no worse for being killed."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from patience import patience
from servers import FaultyServer, serve

from mmscale import prf
from mmscale.config import CacheConfig
from mmscale.data.index import shard_cache
from mmscale.data.index.byte_reader import ByteReader, ShardFault
from mmscale.data.index.index_files import Shard
from mmscale.data.index.manifest import ShardPlace
from mmscale.data.index.shard_cache import PATIENCE, ShardCache
from mmscale.data.storage import remote_file
from mmscale.data.storage.file_lock import locked
from mmscale.data.storage.remote_file import RemoteFault
from mmscale.errors import SampleFault, UserError

SIZE = 200_000
PAUSE = time.sleep  # the real one

READER = """
import hashlib, os, sys
from mmscale.config import CacheConfig
from mmscale.data.index.shard_cache import ShardCache
from mmscale.data.index.index_files import Shard
folder, max_gb, *wanted = sys.argv[1:]
cache = ShardCache(CacheConfig(dir=folder, max_gb=float(max_gb), retries=2))
for one in wanted:
    url, size, sha256 = one.split()
    handle = cache.open(url, Shard("x.tar", int(size), sha256, 1))
    data = os.pread(handle, int(size), 0)
    assert hashlib.sha256(data).hexdigest() == sha256
    os.close(handle)
print("read", len(wanted))
"""


def make_shard(folder: Path, number: int, size: int = SIZE) -> Shard:
    data = (prf.uniform(number, size) * 256).astype("u1").tobytes()
    (folder / f"{number}.tar").write_bytes(data)
    return Shard(f"{number}.tar", size, hashlib.sha256(data).hexdigest(), 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "served").mkdir()
    return tmp_path / "served"


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    with serve(folder) as running:
        yield running


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_file.time, "sleep", lambda _: None)


def config(tmp_path: Path, shards: float = 100, retries: int = 2) -> CacheConfig:
    """A cache with room for so many shards."""
    return CacheConfig(dir=str(tmp_path / "cache"), max_gb=shards * SIZE / 1e9, retries=retries)


def read(cache: ShardCache, server: FaultyServer, shard: Shard) -> bytes:
    handle = cache.open(f"{server.url}/{shard.name}", shard)
    try:
        return os.pread(handle, shard.bytes + 1, 0)
    finally:
        os.close(handle)


def start_reader(cache: CacheConfig, server: FaultyServer, *shards: Shard) -> subprocess.Popen[str]:
    wanted = [f"{server.url}/{shard.name} {shard.bytes} {shard.sha256}" for shard in shards]
    return subprocess.Popen(
        [sys.executable, "-c", READER, cache.dir, str(cache.max_gb), *wanted],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=patience(5))
    assert process.returncode == 0, err
    return out


def wait_until_blocked(process: subprocess.Popen[str]) -> None:
    """Return when the process waits for a file lock."""
    waiting = re.compile(rf"-> FLOCK +ADVISORY +WRITE +{process.pid} ")
    for _ in range(int(patience(5) / 0.05)):
        assert process.poll() is None, "it ended instead of waiting"
        if waiting.search(Path("/proc/locks").read_text()):
            return
        PAUSE(0.05)
    raise AssertionError("it never waited")


def kept(cache: CacheConfig) -> list[str]:
    """Names of the files under shards/."""
    return sorted(path.name for path in Path(cache.dir, "shards").glob("??/*"))


def test_fetched_once_then_read_without_the_server(
    tmp_path: Path, folder: Path, server: FaultyServer
) -> None:
    shard, settings = make_shard(folder, 1), config(tmp_path)
    expected = (folder / "1.tar").read_bytes()
    assert read(ShardCache(settings), server, shard) == expected
    assert read(ShardCache(settings), server, shard) == expected
    copy = tmp_path / "cache" / "shards" / shard.sha256[:2] / f"{shard.sha256}.tar"
    assert copy.read_bytes() == expected and kept(settings) == [copy.name]
    assert server.counts() == {"1.tar": 1}


def test_a_copy_that_was_cut_short_is_fetched_again(
    tmp_path: Path, folder: Path, server: FaultyServer
) -> None:
    shard, settings = make_shard(folder, 1), config(tmp_path)
    expected = read(ShardCache(settings), server, shard)
    os.truncate(tmp_path / "cache" / "shards" / shard.sha256[:2] / f"{shard.sha256}.tar", 1000)
    assert read(ShardCache(settings), server, shard) == expected
    assert server.counts() == {"1.tar": 2}


def test_a_copy_that_lost_a_bit_is_fetched_again_once(
    tmp_path: Path, folder: Path, server: FaultyServer
) -> None:
    shard, settings = make_shard(folder, 1), config(tmp_path)
    place, whole = ShardPlace(server.url, shard), (folder / "1.tar").read_bytes()
    wanted = whole[100:200], zlib.crc32(whole[100:200])
    store = ByteReader(settings)
    assert store.read(place, 100, 100, wanted[1]) == wanted[0]
    copy = tmp_path / "cache" / "shards" / shard.sha256[:2] / f"{shard.sha256}.tar"
    with open(copy, "r+b") as file:
        file.seek(150)
        file.write(bytes([whole[150] ^ 1]))
    for reader in (store, ByteReader(settings)):
        assert reader.read(place, 100, 100, wanted[1]) == wanted[0]
    assert copy.read_bytes() == whole and server.counts() == {"1.tar": 2}
    # An index that asks for other bytes than the shard has is not answered by fetching for ever.
    for _ in range(3):
        with pytest.raises(ShardFault, match="changed since it was indexed"):
            store.read(place, 100, 100, wanted[1] ^ 1)
    assert server.counts() == {"1.tar": 2}


def test_same_name_other_content_is_another_copy(
    tmp_path: Path, folder: Path, server: FaultyServer
) -> None:
    cache = ShardCache(config(tmp_path))
    first = make_shard(folder, 1)
    before = read(cache, server, first)
    (folder / "1.tar").write_bytes(bytes(SIZE))
    second = Shard("1.tar", SIZE, hashlib.sha256(bytes(SIZE)).hexdigest(), 1)
    assert read(cache, server, second) == bytes(SIZE)
    assert read(cache, server, first) == before


def test_corrupted_body_is_fetched_again_and_never_used(
    tmp_path: Path, folder: Path, server: FaultyServer
) -> None:
    shard, settings = make_shard(folder, 1), config(tmp_path)
    server.faults.append(("1.tar", "corrupt", 70_000))
    assert read(ShardCache(settings), server, shard) == (folder / "1.tar").read_bytes()
    other = make_shard(folder, 2)
    server.always["2.tar"] = ("corrupt", SIZE - 1)
    with pytest.raises(RemoteFault, match=r"^its SHA-256 differs from the index$"):
        read(ShardCache(settings), server, other)
    assert server.counts() == {"1.tar": 2, "2.tar": 2}
    assert kept(settings) == [f"{shard.sha256}.tar"]


@pytest.mark.parametrize("claimed", [SIZE - 1, 0])
def test_a_shard_of_another_size_is_refused(
    tmp_path: Path, folder: Path, server: FaultyServer, claimed: int
) -> None:
    shard = make_shard(folder, 1)
    server.always["1.tar"] = ("length", claimed)
    with pytest.raises(
        RemoteFault, match=rf"^it has {claimed} bytes, but {SIZE} when it was indexed$"
    ):
        read(ShardCache(config(tmp_path)), server, shard)


def test_transfer_survives_drops(tmp_path: Path, folder: Path, server: FaultyServer) -> None:
    shard = make_shard(folder, 1, 3_000_000)
    for fault in ("drop", "cut", "refuse"):
        server.faults.append(("1.tar", fault, 1_000_000))
    server.faults.append(("1.tar", "status", 503))
    data = read(ShardCache(config(tmp_path, retries=3)), server, shard)
    assert data == (folder / "1.tar").read_bytes()


def test_a_failure_is_remembered_for_a_while(
    tmp_path: Path, folder: Path, server: FaultyServer
) -> None:
    shard, cache = make_shard(folder, 1), ShardCache(config(tmp_path))
    server.always["1.tar"] = ("status", 404)
    for _ in range(PATIENCE + 1):
        with pytest.raises(RemoteFault, match="HTTP 404 Not Found"):
            read(cache, server, shard)
    assert len(server.requests) == 1
    server.always.clear()  # it comes back, and is found when patience is over
    assert read(cache, server, shard) == (folder / "1.tar").read_bytes()
    assert kept(config(tmp_path)) == [f"{shard.sha256}.tar"]


def test_processes_that_race_fetch_once(tmp_path: Path, folder: Path, server: FaultyServer) -> None:
    shard, settings = make_shard(folder, 1, 2_000_000), config(tmp_path)
    server.faults.append(("1.tar", "slow", 1000))
    first = start_reader(settings, server, shard)
    assert server.reached.wait(patience(5))
    waiting = [start_reader(settings, server, shard) for _ in range(2)]
    for reader in waiting:
        wait_until_blocked(reader)
    server.go_on.set()
    assert [finish(reader) for reader in (first, *waiting)] == ["read 1\n"] * 3
    assert server.counts() == {"1.tar": 1} and kept(settings) == [f"{shard.sha256}.tar"]


def test_waiting_processes_share_the_failure(
    tmp_path: Path, folder: Path, server: FaultyServer
) -> None:
    shard, settings = make_shard(folder, 1), config(tmp_path)
    part = tmp_path / "cache" / "shards" / shard.sha256[:2] / f"{shard.sha256}.part"
    part.parent.mkdir(parents=True)
    with locked(part) as lock:
        waiting = start_reader(settings, server, shard)
        wait_until_blocked(waiting)
        os.pwrite(lock, b"HTTP 404 Not Found", 0)  # as a holder that fails leaves it
        part.unlink()
    _, err = waiting.communicate(timeout=patience(5))
    assert waiting.returncode and "RemoteFault: HTTP 404 Not Found" in err
    assert server.requests == []


def test_a_killed_download_leaves_nothing_in_the_way(
    tmp_path: Path, folder: Path, server: FaultyServer
) -> None:
    shard, settings = make_shard(folder, 1), config(tmp_path)
    server.faults.append(("1.tar", "slow", 1000))
    victim = start_reader(settings, server, shard)
    assert server.reached.wait(patience(5))
    assert kept(settings) == [f"{shard.sha256}.part"]
    survivor = start_reader(settings, server, shard)
    wait_until_blocked(survivor)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert finish(survivor) == "read 1\n"  # while the server still holds the victim's connection
    server.go_on.set()
    assert kept(settings) == [f"{shard.sha256}.tar"]


def test_abandoned_parts_do_not_take_room(
    tmp_path: Path, folder: Path, server: FaultyServer
) -> None:
    lost, shard = make_shard(folder, 1), make_shard(folder, 2)
    settings = config(tmp_path, shards=1.5)
    server.faults.append(("1.tar", "slow", 1000))
    victim = start_reader(settings, server, lost)
    assert server.reached.wait(patience(5))
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert len(read(ShardCache(settings), server, shard)) == SIZE
    assert kept(settings) == [f"{shard.sha256}.tar"]


def test_least_recently_used_goes_first(tmp_path: Path, folder: Path, server: FaultyServer) -> None:
    shards = [make_shard(folder, number) for number in range(4)]
    settings = config(tmp_path, shards=3)
    cache = ShardCache(settings)
    for used in (0, 1, 2, 0, 3):
        read(cache, server, shards[used])
    assert kept(settings) == sorted(f"{shards[n].sha256}.tar" for n in (0, 2, 3))
    read(cache, server, shards[1])
    assert kept(settings) == sorted(f"{shards[n].sha256}.tar" for n in (0, 1, 3))
    assert server.counts() == {"0.tar": 1, "1.tar": 2, "2.tar": 1, "3.tar": 1}


def test_readers_go_on_when_their_copy_is_removed(
    tmp_path: Path, folder: Path, server: FaultyServer
) -> None:
    shards = [make_shard(folder, number) for number in range(2)]
    settings = config(tmp_path, shards=1)
    stores = [ByteReader(settings), ByteReader(settings)]
    data = [(folder / shard.name).read_bytes() for shard in shards]
    for at in range(0, 5000, 100):
        for number, store in enumerate(stores):
            expected = data[number][at : at + 100]
            place = ShardPlace(server.url, shards[number])
            assert store.read(place, at, 100, zlib.crc32(expected)) == expected
    assert kept(settings) == [f"{shards[1].sha256}.tar"] and len(server.requests) == 2
    again = pickle.loads(pickle.dumps(stores[0]))  # a new process needs it again
    assert (
        again.read(ShardPlace(server.url, shards[0]), 0, 9, zlib.crc32(data[0][:9])) == data[0][:9]
    )
    assert server.counts() == {"0.tar": 2, "1.tar": 1}


def test_many_processes_under_a_tight_limit(
    tmp_path: Path, folder: Path, server: FaultyServer
) -> None:
    shards = [make_shard(folder, number) for number in range(6)]
    settings = config(tmp_path, shards=2)
    turns = [shards[k:] + shards[:k] for k in range(4)]
    readers = [start_reader(settings, server, *turn, *turn) for turn in turns]
    assert [finish(reader) for reader in readers] == ["read 12\n"] * 4
    held = [path.stat().st_size for path in Path(settings.dir, "shards").glob("??/*")]
    assert sum(held) <= 2 * SIZE and all(size in (0, SIZE) for size in held)


def test_room_promised_to_others_is_waited_for(
    tmp_path: Path, folder: Path, server: FaultyServer
) -> None:
    slow, shard = make_shard(folder, 1), make_shard(folder, 2)
    settings = config(tmp_path, shards=1)
    server.faults.append(("1.tar", "slow", 1000))
    first = start_reader(settings, server, slow)
    assert server.reached.wait(patience(5))
    second = start_reader(settings, server, shard)
    wait_until_blocked(second)
    assert server.counts() == {"1.tar": 1}
    server.go_on.set()
    assert finish(first) == finish(second) == "read 1\n"
    assert kept(settings) == [f"{shard.sha256}.tar"]


def test_check_names_the_key(tmp_path: Path) -> None:
    shards = [Shard("a.tar", 10, "0" * 64, 1), Shard("b.tar", SIZE, "1" * 64, 1)]
    ShardCache(config(tmp_path, shards=1)).check(shards)
    with pytest.raises(
        UserError,
        match=r"^data\.cache\.max_gb: 0\.0001 is less than the shard b\.tar of 0\.0002 GB",
    ):
        ShardCache(config(tmp_path, shards=0.5)).check(shards)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        UserError,
        match=r"^data\.cache\.dir: .*file/cache/shards cannot be used \(Not a directory\)",
    ):
        ShardCache(CacheConfig(dir=str(tmp_path / "file" / "cache"))).check(shards)


def test_a_full_disk_is_a_fault_with_its_reason(
    tmp_path: Path, folder: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, settings = make_shard(folder, 1), config(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_cache, "_write", full)
    with pytest.raises(
        SampleFault, match=r"^shard 1\.tar cannot be fetched \(the cache .*: No space left on"
    ):
        ByteReader(settings).read(ShardPlace(server.url, shard), 0, 1, 0)
    assert kept(settings) == []
