"""Bytes come back exactly as indexed, or the sample is faulted with the shard's name."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import zlib
from pathlib import Path

import pytest

from mmscale.data.index import byte_reader
from mmscale.data.index.byte_reader import ByteReader, ShardFault
from mmscale.data.index.index_files import Shard
from mmscale.data.index.manifest import ShardPlace
from mmscale.errors import SampleFault, UserError

DATA = bytes(range(256)) * 8


def place(path: Path) -> ShardPlace:
    return ShardPlace(path.parent, Shard(path.name, 0, "0" * 64, 0))


@pytest.fixture
def store() -> ByteReader:
    return ByteReader()


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "s.tar"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize(("offset", "size"), [(0, len(DATA)), (100, 33), (len(DATA), 0)])
def test_reads_exactly_the_range(store: ByteReader, shard: Path, offset: int, size: int) -> None:
    expected = DATA[offset : offset + size]
    assert store.read(place(shard), offset, size, zlib.crc32(expected)) == expected


def test_changed_bytes_are_a_fault(store: ByteReader, shard: Path) -> None:
    with pytest.raises(SampleFault, match=r"s\.tar changed since it was indexed"):
        store.read(place(shard), 10, 5, zlib.crc32(DATA[10:15]) ^ 1)


def test_short_read_is_a_fault_and_allocates_nothing(store: ByteReader, shard: Path) -> None:
    for size in (len(DATA), 1 << 62):
        with pytest.raises(SampleFault, match=rf"s\.tar ends before byte {size + 1}"):
            store.read(place(shard), 1, size, 0)


def test_missing_shard_is_a_fault(store: ByteReader, tmp_path: Path) -> None:
    with pytest.raises(ShardFault, match=r"gone\.tar cannot be read \(No such file"):
        store.read(place(tmp_path / "gone.tar"), 0, 1, 0)


def test_unreadable_shard_is_a_fault(store: ByteReader, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SampleFault, match=r"s\.tar cannot be read \(Not a directory\)"):
        store.read(place(tmp_path / "file" / "s.tar"), 0, 1, 0)


def is_open(path: Path) -> bool:
    """Whether this process has the file open."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{number}") == str(path):
                return True
    return False


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_trouble_of_the_machine_is_no_fault_of_the_sample(
    store: ByteReader, shard: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        UserError,
        match=r"s\.tar: (too many open files; raise|this process has no memory left; lower)",
    ):
        store.read(place(shard), 0, 4, 0)


def test_open_files_are_bounded_and_the_oldest_goes_first(
    store: ByteReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_reader, "_OPEN_FILES", 2)
    paths = [tmp_path / f"{number}.tar" for number in range(5)]
    for path in paths:
        path.write_bytes(DATA)
        store.read(place(path), 0, 4, zlib.crc32(DATA[:4]))
    assert [path.name for path in paths if is_open(path)] == ["3.tar", "4.tar"]
    for path in paths:
        path.unlink()
    assert store.read(place(paths[4]), 0, 4, zlib.crc32(DATA[:4])) == DATA[:4]  # still open
    with pytest.raises(SampleFault, match="No such file"):
        store.read(place(paths[0]), 0, 4, zlib.crc32(DATA[:4]))  # closed
    store.close()
    assert not any(is_open(path) for path in paths)


def test_pickled_copy_opens_its_own_files(store: ByteReader, shard: Path) -> None:
    store.read(place(shard), 0, 4, zlib.crc32(DATA[:4]))
    copy = pickle.loads(pickle.dumps(store))
    store.close()
    assert copy.read(place(shard), 4, 4, zlib.crc32(DATA[4:8])) == DATA[4:8]


def test_short_reads_of_the_system_are_continued(
    store: ByteReader, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda handle, size, at: real(handle, min(size, 100), at))
    assert store.read(place(shard), 1, 1999, zlib.crc32(DATA[1:2000])) == DATA[1:2000]


def test_a_shard_that_shrinks_while_it_is_read_is_a_fault(
    store: ByteReader, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pread", lambda handle, size, at: b"")
    with pytest.raises(SampleFault, match=r"s\.tar ends before byte 10"):
        store.read(place(shard), 0, 10, 0)
