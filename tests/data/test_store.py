"""Bytes come back exactly as indexed, or the sample is faulted with the shard's name."""

from __future__ import annotations

import os
import pickle
import zlib
from pathlib import Path

import pytest

from mmscale.data import store as store_module
from mmscale.data.store import ByteStore
from mmscale.errors import SampleFault

DATA = bytes(range(256)) * 8


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "s.tar"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize(("offset", "size"), [(0, len(DATA)), (100, 33), (len(DATA), 0)])
def test_reads_exactly_the_range(shard: Path, offset: int, size: int) -> None:
    expected = DATA[offset : offset + size]
    assert ByteStore().read(shard, offset, size, zlib.crc32(expected)) == expected


def test_changed_bytes_are_a_fault(shard: Path) -> None:
    with pytest.raises(SampleFault, match=r"s\.tar changed since it was indexed"):
        ByteStore().read(shard, 10, 5, zlib.crc32(DATA[10:15]) ^ 1)


def test_short_read_is_a_fault_and_allocates_nothing(shard: Path) -> None:
    for size in (len(DATA), 1 << 62):
        with pytest.raises(SampleFault, match=rf"s\.tar ends before byte {size + 1}"):
            ByteStore().read(shard, 1, size, 0)


def test_missing_shard_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(SampleFault, match=r"gone\.tar cannot be read \(No such file"):
        ByteStore().read(tmp_path / "gone.tar", 0, 1, 0)


def test_unreadable_shard_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SampleFault, match=r"s\.tar cannot be read \(Not a directory\)"):
        ByteStore().read(tmp_path / "file" / "s.tar", 0, 1, 0)


def test_open_files_are_bounded_and_the_oldest_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_OPEN_FILES", 2)
    store = ByteStore()
    before = len(os.listdir("/proc/self/fd"))
    paths = [tmp_path / f"{number}.tar" for number in range(5)]
    for path in paths:
        path.write_bytes(DATA)
        store.read(path, 0, 4, zlib.crc32(DATA[:4]))
    assert len(os.listdir("/proc/self/fd")) == before + 2
    for path in paths:
        path.unlink()
    assert store.read(paths[4], 0, 4, zlib.crc32(DATA[:4])) == DATA[:4]  # still open
    with pytest.raises(SampleFault, match="No such file"):
        store.read(paths[0], 0, 4, zlib.crc32(DATA[:4]))  # closed
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_pickled_copy_opens_its_own_files(shard: Path) -> None:
    store = ByteStore()
    store.read(shard, 0, 4, zlib.crc32(DATA[:4]))
    copy = pickle.loads(pickle.dumps(store))
    store.close()
    assert copy.read(shard, 4, 4, zlib.crc32(DATA[4:8])) == DATA[4:8]
