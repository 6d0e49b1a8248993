"""Extents are a pure function of the index: all that is wanted, little else, each once."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from indexed import write_shards
from servers import FaultyServer, serve

from mmscale import prf
from mmscale.config import CacheConfig, MediaConfig
from mmscale.data.fetching import extents as extents_module
from mmscale.data.fetching.extent import Extent
from mmscale.data.fetching.extents import ExtentMap
from mmscale.data.fetching.server_ranges import ServerRanges
from mmscale.data.index.build_index import build_index
from mmscale.data.index.dataset import Dataset

SAMPLES = 50
BLOCKS = (1, 7, 16, 64)
WANTED = (None, ["text"], ["text.extra", "text"], ["json.label", "json.other"], ["image"])


def write_set(folder: Path, samples: int = SAMPLES, per_shard: int = 12) -> Path:
    """Samples with fields of many sizes, some of which some samples lack."""
    draws = prf.Draws(7)
    made = {}
    for number in range(samples):
        fields = {"json": b'{"label": %d}' % number}
        if number % 3:
            fields["txt"] = bytes(draws.integer(97, 122) for _ in range(draws.integer(1, 3000)))
        if number % 5 == 0:
            fields["extra.txt"] = b"x" * draws.integer(1, 40_000)
        if number % 7 == 0:
            fields["bin"] = bytes(9000)  # which nobody can ask for
        if number == 4:
            fields["cls"] = b""
        made[f"{number:04d}"] = fields
    write_shards(folder, made, per_shard)
    build_index(folder, MediaConfig(), progress=False)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    with serve(write_set(tmp_path_factory.mktemp("served") / "set")) as running:
        yield running


@pytest.fixture
def dataset(server: FaultyServer, tmp_path: Path) -> Dataset:
    return Dataset.open([server.url], CacheConfig(dir=str(tmp_path / "cache")))


@pytest.fixture(autouse=True)
def small_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents_module, "_JOINED_BYTES", 4000)


def payloads(dataset: Dataset, samples: range, wanted: list[str] | None) -> set[tuple]:
    """(shard, offset, size, crc) of the fields, looked up one by one."""
    (manifest,) = dataset.manifests
    stored = {"text": "txt", "text.extra": "extra.txt"} | dict.fromkeys(
        ["json.label", "json.other"], "json"
    )
    names = {stored[field] for field in wanted or stored} | ({"cls"} if wanted is None else set())
    found = set()
    for sample in samples:
        for field in names:
            offset, size, crc, *_ = manifest.column(field)[sample].item()
            if offset:
                found.add((manifest.shards[manifest.shard_of(sample)], offset, size, crc))
    return found


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("wanted", WANTED[:4])
def test_everything_wanted_is_in_one_extent_of_its_block(
    dataset: Dataset, block: int, wanted: list[str] | None
) -> None:
    extents = ExtentMap(dataset, block, wanted)
    for number in range(-(-SAMPLES // block)):
        samples = range(number * block, min((number + 1) * block, SAMPLES))
        expected = {one for one in payloads(dataset, samples, wanted) if one[2]}
        found = extents.of_block(number)
        inside = [
            {one for one in expected if one[0] == extent.shard.name
             and extent.offset <= one[1] and one[1] + one[2] <= extent.end}
            for extent in found
        ]  # fmt: skip
        assert set().union(*inside) == expected and all(inside)
        assert sum(map(len, inside)) == len(expected)  # each in one of them
        places = [(extent.shard.name, extent.offset, extent.end) for extent in found]
        assert places == sorted(places)
        for (shard, _, end), (other, start, _) in pairwise(places):
            assert shard != other or start - end >= 4000
        for extent, held in zip(found, inside, strict=True):
            # It begins and ends with what is wanted, and no gap in it is wide.
            assert min(one[1] for one in held) == extent.offset
            assert max(one[1] + one[2] for one in held) == extent.end
            ranges = sorted((one[1], one[1] + one[2]) for one in held)
            assert all(start - end < 4000 for (_, end), (start, _) in pairwise(ranges))
            checked = {(extent.shard.name, *check) for check in extents.checks(extent)}
            assert held <= checked <= payloads(dataset, range(SAMPLES), wanted)


@pytest.mark.parametrize("wanted", WANTED)
def test_no_byte_of_a_payload_is_in_two_blocks(dataset: Dataset, wanted: list[str] | None) -> None:
    extents = ExtentMap(dataset, 7, wanted)
    found = [extent for number in range(8) for extent in extents.of_block(number)]
    assert len({extent.name for extent in found}) == len(found)
    for left, right in pairwise(found):
        assert left.shard != right.shard or left.end <= right.offset
    if wanted == ["image"]:
        assert found == []


def test_the_order_of_fields_and_the_process_decide_nothing(
    dataset: Dataset, server: FaultyServer, tmp_path: Path
) -> None:
    fields = ["text", "json.label", "text.extra"]
    mine = [ExtentMap(dataset, 16, fields).of_block(number) for number in range(4)]
    assert mine == [ExtentMap(dataset, 16, fields[::-1]).of_block(number) for number in range(4)]
    copy = pickle.loads(pickle.dumps(ExtentMap(dataset, 16, fields)))
    assert mine == [copy.of_block(number) for number in range(4)]
    again = pickle.loads(pickle.dumps(dataset))
    assert again.extents.of_block(0) == dataset.extents.of_block(0)
    program = (
        "import sys; from mmscale.config import CacheConfig\n"
        "from mmscale.data.fetching.extents import ExtentMap\n"
        "from mmscale.data.index.dataset import Dataset\n"
        "from mmscale.data.fetching import extents; extents._JOINED_BYTES = 4000\n"
        "data = Dataset.open([sys.argv[1]], CacheConfig(dir=sys.argv[2]))\n"
        "extents = ExtentMap(data, 16, ['text.extra', 'json.label', 'text'])\n"
        "print(*(one.name for number in range(4) for one in extents.of_block(number)))"
    )
    command = [sys.executable, "-c", program, server.url, str(tmp_path / "other")]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [extent.name for extents in mine for extent in extents]


def test_the_extent_that_holds_a_field(dataset: Dataset) -> None:
    extents = ExtentMap(dataset, 7, ["text"])
    for sample in range(SAMPLES):
        for field in ("text", "json.label", "text.extra"):  # two that are not wanted
            facts = dataset.facts(field, np.array([sample]))[0]
            if facts["offset"]:
                extent = extents.containing(sample, field)
                assert extent.offset <= facts["offset"]
                assert facts["offset"] + facts["size"] <= extent.end
                alone = ExtentMap(dataset, 7, [field]).of_block(sample // 7)
                assert extent in extents.of_block(sample // 7) or (
                    field != "text" and extent in alone
                )


def test_samples_are_read_through_extents_and_each_block_is_fetched_once(
    server: FaultyServer, tmp_path: Path
) -> None:
    local = Dataset.open([str(server.folder)])
    cache = CacheConfig(dir=str(tmp_path / "cache"))
    dataset = Dataset.open([server.url], cache, block=7)
    server.requests.clear()
    server.sent.clear()
    for sample in range(SAMPLES):
        for field in ("json.label", "text", "text.extra", "cls"):
            if dataset.facts(field, np.array([sample]))["offset"][0]:
                assert dataset.read(field, sample) == local.read(field, sample)
    blocks = range(-(-SAMPLES // 7))
    found = [extent for number in blocks for extent in dataset.extents.of_block(number)]
    assert len(server.requests) == len(found)
    sent = sum(server.sent.values())
    assert sent == sum(extent.length for extent in found)
    assert sent < sum(shard.bytes for shard in local.manifests[0].entries)


def test_fields_that_are_not_wanted_are_not_fetched(server: FaultyServer, tmp_path: Path) -> None:
    cache = CacheConfig(dir=str(tmp_path / "cache"))
    dataset = Dataset.open([server.url], cache, block=1, fields=["json.label"])
    server.sent.clear()
    for sample in range(SAMPLES):
        assert json.loads(dataset.read("json.label", sample)) == {"label": sample}
    assert sum(server.sent.values()) == sum(len(b'{"label": %d}' % n) for n in range(SAMPLES))


def test_local_folders_have_no_extents(
    server: FaultyServer, dataset: Dataset, tmp_path: Path
) -> None:
    assert Dataset.open([str(server.folder)]).extents is None
    local = write_set(tmp_path / "local", samples=10)
    cache = CacheConfig(dir=str(tmp_path / "cache"))
    mixed = Dataset.open([str(local), server.url], cache, block=16)
    alone = ExtentMap(dataset, SAMPLES).of_block(0)
    found = [extent for number in range(4) for extent in mixed.extents.of_block(number)]
    assert {extent.shard for extent in found} == {extent.shard for extent in alone}
    assert mixed.extents.first() == mixed.extents.of_block(0)
    both = Dataset.open([str(local), str(server.folder)])
    assert [mixed.read("json.label", n) for n in range(60)] == [
        both.read("json.label", n) for n in range(60)
    ]


def test_whole_shards_where_the_server_knows_no_ranges(dataset: Dataset) -> None:
    extents = ExtentMap(dataset, 7)
    before = extents.of_block(1)
    ServerRanges(dataset.cache.folder()).deny(dataset.manifests[0].base)
    after = extents.of_block(1)
    assert len(before) > len(after) and all(extent.is_whole for extent in after)
    assert after == list(dict.fromkeys(extent.whole() for extent in before))
    assert len(extents.of_block(0)) == 1  # a shard is one, however many parts are wanted
    everything = payloads(dataset, range(12), None)
    first = extents.of_block(0)[0]
    assert {(first.shard.name, *check) for check in extents.checks(first)} == everything


def test_an_index_that_points_beyond_the_shard(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    shutil.copytree(dataset.manifests[0].root / "index", tmp_path / "bad" / "index")
    column = np.load(tmp_path / "bad" / "index" / "field.json.npy")
    shard = dataset.manifests[0].entries[0].bytes
    column["offset"][0] = shard - 3
    column["offset"][1], column["size"][1] = 2**64 - 1, 2**64 - 1
    column["size"][2] = 1 << 62
    np.save(tmp_path / "bad" / "index" / "field.json.npy", column)
    damaged = Dataset.open([str(tmp_path / "bad")], dataset.cache, block=4, fields=["json.label"])
    (extent,) = damaged.extents.of_block(0)
    (check,) = damaged.extents.checks(extent)
    assert check.crc == zlib.crc32(b'{"label": 3}') and extent.length == check.size
    for sample in range(3):
        with pytest.raises(Exception, match=r"shard-000000\.tar ends before byte"):
            damaged.read("json.label", sample)
    assert damaged.read("json.label", 3) == b'{"label": 3}'


def test_names_are_of_the_bytes_alone(dataset: Dataset) -> None:
    extent = ExtentMap(dataset, 16).of_block(0)[0]
    moved = Extent("s3://other/place", extent.shard, extent.offset, extent.length)
    assert moved.name == extent.name and moved.url == f"s3://other/place/{extent.shard.name}"
