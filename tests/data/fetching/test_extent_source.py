"""One extent from a server that sends ranges short, late, wrong or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_shards import SIZE, bytes_of, make_shard, part_of, whole_check
from servers import FaultyServer, serve

from mmscale.data.fetching.extent import Extent, FieldCheck
from mmscale.data.fetching.extent_source import Arrival, receive
from mmscale.data.index.index_files import Shard
from mmscale.data.storage import remote_file
from mmscale.data.storage.remote_file import NoRanges, RemoteFault


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served") as running:
        yield running


@pytest.fixture
def extent(server: FaultyServer) -> Extent:
    """The middle third of a shard."""
    return part_of(server, make_shard(server.folder, 1, 3 * SIZE), SIZE)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    handle = os.open(tmp_path / "part", os.O_RDWR | os.O_CREAT)
    yield handle
    os.close(handle)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(remote_file.time, "sleep", slept.append)
    return slept


def get(server: FaultyServer, extent: Extent, target: int) -> Arrival:
    return receive(extent, whole_check(server, extent), target, retries=2)


def asked(server: FaultyServer) -> list[str]:
    return [header.removeprefix("bytes=") for _, header in server.requests]


ALL = f"{SIZE}-{2 * SIZE - 1}"


def test_one_request_for_one_extent(server: FaultyServer, extent: Extent, target: int) -> None:
    done = get(server, extent, target)
    assert done.sound and (done.bytes, done.requests) == (SIZE, 1) and asked(server) == [ALL]
    assert os.pread(target, 2 * SIZE, 0) == bytes_of(server, extent)


@pytest.mark.parametrize("fault", ["cut", "less"])
def test_a_range_that_comes_short_is_continued(
    server: FaultyServer, extent: Extent, target: int, fault: str
) -> None:
    server.faults.append((".tar", fault, 50_000))
    done = get(server, extent, target)
    assert done.sound and (done.bytes, done.requests) == (SIZE, 2)
    first, second = asked(server)
    start, _, last = second.partition("-")
    assert first == ALL and last == f"{2 * SIZE - 1}"
    # What had arrived and was not read when the connection broke is lost.
    assert SIZE <= int(start) <= SIZE + 50_000 and (fault == "cut" or int(start) > SIZE)
    assert os.pread(target, 2 * SIZE, 0) == bytes_of(server, extent)


def test_a_range_that_is_cut_before_its_first_byte(
    server: FaultyServer, extent: Extent, target: int
) -> None:
    server.faults.extend([(".tar", "cut", 0), (".tar", "drop", 0)])
    assert get(server, extent, target).sound and asked(server) == [ALL] * 3


def test_a_range_that_is_late(
    server: FaultyServer, extent: Extent, target: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "_SILENCE_S", 2.0)
    server.faults.append((".tar", "stall", 1000))
    assert get(server, extent, target).sound
    assert asked(server) == [ALL, f"{SIZE + 1000}-{2 * SIZE - 1}"]


@pytest.mark.parametrize(("fault", "value"), [("foreign", 512), ("corrupt", SIZE + 1)])
def test_other_bytes_are_asked_for_again_once(
    server: FaultyServer, extent: Extent, target: int, fault: str, value: int
) -> None:
    server.faults.append((".tar", fault, value))
    done = get(server, extent, target)
    assert done.sound and (done.bytes, done.requests) == (2 * SIZE, 2)
    assert os.pread(target, SIZE, 0) == bytes_of(server, extent)
    server.faults.extend([(".tar", fault, value)] * 2)
    done = get(server, extent, target)
    assert not done.sound and done.requests == 2 and len(server.requests) == 4


def test_a_range_of_another_place_is_refused(
    server: FaultyServer, extent: Extent, target: int, pauses: list[float]
) -> None:
    server.faults.append((".tar", "shifted", 512))
    with pytest.raises(RemoteFault, match=r"^the server answers with another range than asked"):
        get(server, extent, target)
    assert len(server.requests) == 1 and pauses == []


def test_a_server_that_ignores_ranges(
    server: FaultyServer, extent: Extent, target: int, pauses: list[float]
) -> None:
    server.ranges = False
    with pytest.raises(NoRanges):
        get(server, extent, target)
    assert get(server, extent.whole(), target).sound
    assert pauses == [] and len(server.requests) == 2
    server.faults.append((".tar", "cut", SIZE))  # it starts over
    assert get(server, extent.whole(), target).sound and len(server.requests) == 4


def test_a_busy_server_says_when(
    server: FaultyServer, extent: Extent, target: int, pauses: list[float]
) -> None:
    server.faults.extend([(".tar", "status", 503), (".tar", "status", 429)])
    assert get(server, extent, target).sound and pauses == [0.0, 0.0]  # Retry-After: 0


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (3 * SIZE - 1, f"it has {3 * SIZE - 1} bytes, but {3 * SIZE} when it was indexed"),
        (SIZE + 5, f"it has {SIZE + 5} bytes, but {3 * SIZE} when it was indexed"),
        (SIZE, "HTTP 416 Requested Range Not Satisfiable"),
    ],
)
def test_a_shard_that_was_replaced_by_another_size(
    server: FaultyServer, extent: Extent, target: int, size: int, reason: str
) -> None:
    checks = whole_check(server, extent)
    os.truncate(server.folder / "1.tar", size)
    with pytest.raises(RemoteFault) as caught:
        receive(extent, checks, target, retries=2)
    assert str(caught.value) == reason


def test_a_mirror_with_another_name_for_the_same_bytes(
    server: FaultyServer, extent: Extent, target: int
) -> None:
    server.faults.append((".tar", "cut", 1000))
    # The ETag of the rest is another, as one byte that is not asked for is another.
    server.faults.append((".tar", "corrupt", 0))
    assert get(server, extent, target).sound


def test_gone_and_forbidden(server: FaultyServer, extent: Extent, target: int) -> None:
    for status, reason in ((404, "HTTP 404 Not Found"), (403, "HTTP 403 Forbidden")):
        server.faults.append((".tar", "status", status))
        with pytest.raises(RemoteFault, match=f"^{reason}$"):
            get(server, extent, target)
    assert len(server.requests) == 2


def test_a_field_that_does_not_fit_is_wrong(
    server: FaultyServer, extent: Extent, target: int
) -> None:
    beyond = [FieldCheck(extent.end - 5, 6, 0)]
    assert not receive(extent, beyond, target, retries=0).sound


def test_seconds_are_told_apart(server: FaultyServer, extent: Extent, target: int) -> None:
    began = time.monotonic()
    done = get(server, extent, target)
    assert done.disk_s > 0 and done.source_s > 0
    assert done.disk_s + done.source_s <= time.monotonic() - began


def test_the_smallest_shard(server: FaultyServer, target: int) -> None:
    (server.folder / "0.tar").write_bytes(b"x")
    extent = Extent(server.url, Shard("0.tar", 1, "0" * 64, 1), 0, 1)
    assert receive(extent, (), target, retries=0).bytes == 1
    assert server.requests == [("0.tar", "")]
