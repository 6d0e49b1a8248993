"""Remote data sets, end to end: indexed and read over HTTP and S3, they are the local ones, batch
for batch.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import s3fs
from conftest import ROOT, run_module
from servers import FaultyServer, s3_proxy, s3_server, serve

from mmscale.config import CacheConfig, MediaConfig
from mmscale.data.fetching.census import PAGE, footprint, take_census
from mmscale.data.index.build_index import IndexPass, index_sources
from mmscale.data.index.dataset import Dataset
from mmscale.data.index.manifest import Manifest, open_manifests
from mmscale.data.index.verify_shards import verify_shards
from mmscale.data.planning.array_cache import ArrayCache
from mmscale.errors import SampleFault, UserError

CONFIG = "configs/train/digits.yaml"


@pytest.fixture(scope="module")
def shards(small_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several small local shards with their index."""
    from mmscale.data.ingest.shard_writer import ShardWriter

    folder = tmp_path_factory.mktemp("local") / "train"
    dataset = Dataset.open([f"{small_digits}/train"])
    manifest = dataset.manifests[0]
    with ShardWriter(folder, samples_per_shard=40) as writer:
        for sample in range(len(dataset)):
            fields = [
                field for field in manifest.fields if manifest.column(field)["offset"][sample]
            ]
            writer.write(
                dataset.key(sample), {field: raw(manifest, field, sample) for field in fields}
            )
    index_sources([str(folder)], None, MediaConfig(), progress=False)
    return folder


def raw(manifest: Manifest, field: str, sample: int) -> bytes:
    facts = manifest.column(field)[sample]
    path = manifest.root / manifest.shards[manifest.shard_of(sample)]
    return path.read_bytes()[int(facts["offset"]) : int(facts["offset"] + facts["size"])]


@pytest.fixture
def server(shards: Path) -> Iterator[FaultyServer]:
    with serve(shards) as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(dir=str(tmp_path / "cache"), retries=3)


def names(server: FaultyServer, count: int = 3) -> str:
    return f"{server.url}/shard-{{000000..{count - 1:06d}}}.tar"


def same_samples(left: Dataset, right: Dataset) -> bool:
    assert left.digests == right.digests and len(left) == len(right)
    fields = left.manifests[0].fields
    assert fields == right.manifests[0].fields
    return all(
        left.key(i) == right.key(i)
        and all(left.read(f, i) == right.read(f, i) for f in ("image", "audio", "text"))
        for i in range(len(left))
    )


# -- over HTTP
# -------------------------------------------------------------------------------------------


def test_index_of_urls_is_the_local_one(
    shards: Path, server: FaultyServer, tmp_path: Path, cache: CacheConfig
) -> None:
    (tmp_path / "list.txt").write_text(
        f"# two lines\n{names(server, 2)}\n\n{server.url}/shard-000002.tar\n"
    )
    for number, source in enumerate((names(server), f"@{tmp_path}/list.txt")):
        server.requests.clear()
        out = tmp_path / f"out{number}"
        manifest = index_sources([source], out, MediaConfig(), progress=False)
        assert manifest.digest == Manifest.open(shards).digest and manifest.base == server.url
        assert server.counts() == {f"shard-{n:06d}.tar": 1 for n in range(3)}
        assert [path.name for path in out.iterdir()] == ["index"]
        for name in (
            "keys.npy",
            "key_ends.npy",
            *(f"field.{field}.npy" for field in manifest.fields),
        ):
            assert (out / "index" / name).read_bytes() == (shards / "index" / name).read_bytes()
        assert verify_shards(out) == []
    assert same_samples(Dataset.open([str(out)], cache), Dataset.open([str(shards)]))


def test_index_survives_faults_and_reports_damage(
    shards: Path, server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmscale.data.storage.remote_file.time.sleep", lambda _: None)
    server.faults.extend(
        [
            ("0.tar", "status", 503),
            ("0.tar", "cut", 20_000),
            ("1.tar", "refuse", None),
            ("2.tar", "drop", 9000),
        ]
    )
    manifest = index_sources([names(server)], tmp_path / "out", MediaConfig(), progress=False)
    assert manifest.digest == Manifest.open(shards).digest
    before = (tmp_path / "out" / "index" / "manifest.json").read_bytes()
    for fault, words in [
        (
            ("status", 404),
            "cannot be fetched (HTTP 404 Not Found); check the URL, the network and the "
            "credentials (docs/remote.md)",
        ),
        (("length", 30_000), "the end marker (two zero blocks) is missing"),
    ]:
        server.always["shard-000001.tar"] = fault
        again = IndexPass(every=True)
        with pytest.raises(UserError) as caught:
            index_sources([names(server)], tmp_path / "out", MediaConfig(), False, again)
        assert str(caught.value).startswith(f"{server.url}/shard-000001.tar: ") and words in str(
            caught.value
        )
        assert any(words in problem for problem in verify_shards(tmp_path / "out"))
    server.always["shard-000001.tar"] = ("corrupt", 600)
    assert any("differs from the index" in problem for problem in verify_shards(tmp_path / "out"))
    assert (tmp_path / "out" / "index" / "manifest.json").read_bytes() == before


def test_sources_that_do_not_go_together(
    server: FaultyServer, shards: Path, tmp_path: Path
) -> None:
    url, out = f"{server.url}/shard-000000.tar", tmp_path / "out"

    def refused(sources: list[str], out: Path | None) -> str:
        with pytest.raises(UserError) as caught:
            index_sources(sources, out, MediaConfig(), progress=False)
        return str(caught.value)

    assert refused([url], None).startswith("--out: missing")
    assert "a second local folder" in refused([str(shards), str(tmp_path)], None)
    assert "an index is of one remote folder" in refused([url, f"{server.url}/other/a.tar"], out)
    assert refused([url, str(shards)], out) == (
        f"{shards}: an index is of one remote folder; index each into an --out of its own"
    )
    assert "no reliable list" in refused([server.url + "/"], out)
    assert "holds shards of its own" in refused([url], shards)
    assert "cannot be made" in refused([url], shards / "shard-000000.tar" / "out")


def test_remote_folder_with_its_own_index(
    server: FaultyServer, shards: Path, cache: CacheConfig, tmp_path: Path
) -> None:
    local = Dataset.open([str(shards)])
    for _ in range(2):
        assert same_samples(Dataset.open([server.url + "/"], cache), local)
    counts = server.counts()
    assert {counts[f"shard-{n:06d}.tar"] for n in range(3)} == {1}
    assert (
        counts["keys.npy"] == 1 and counts["manifest.json"] == 3
    )  # checked again after the copy was made
    some = f"{server.url}/shard-{{000000,000002}}.tar"
    picked = [f"{shards}/shard-{{000000,000002}}.tar"]
    assert same_samples(Dataset.open([some], cache), Dataset.open(picked))


def test_the_copy_of_an_index_and_its_arrays_count_within_the_bound(
    server: FaultyServer, cache: CacheConfig
) -> None:
    derived = ArrayCache.beside(Dataset.open([server.url], cache))
    assert derived.save("counts.npy", np.arange(30_000)).array[-1] == 29_999
    used = take_census(Path(cache.dir)).used
    counted = int.from_bytes(Path(cache.dir, "ledger").read_bytes(), "little")
    files = [path for path in Path(cache.dir, "indexes").rglob("*") if path.is_file()]
    assert any(path.name == "counts.npy" for path in files) and used > sum(
        footprint(path.stat().st_size) for path in files
    )
    assert used <= counted <= used + 4 * PAGE


def test_remote_index_that_is_missing_or_broken(
    shards: Path, tmp_path: Path, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmscale.data.storage.remote_file.time.sleep", lambda _: None)
    copy = tmp_path / "served"
    shutil.copytree(shards, copy)
    manifest = copy / "index" / "manifest.json"
    good = json.loads(manifest.read_text())

    def refused(server: FaultyServer, settings: CacheConfig = cache) -> str:
        with pytest.raises(UserError) as caught:
            open_manifests([server.url], settings)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    with serve(copy) as server:
        for changes in (
            {"samples": "many"},
            {"fields": ["../x"]},
            {"fields": 3},
            {"problems": None},
        ):
            manifest.write_text(json.dumps(good | changes))
            assert "manifest.json: the index is damaged; index the shards with" in refused(server)
        manifest.write_text(json.dumps(good | {"version": 99}))
        assert "index version 99, this release reads" in refused(server)
        manifest.write_text("[" * 100_000)
        assert "the index is damaged" in refused(server)
        manifest.write_text(json.dumps(good | {"samples": 1}))
        assert "index: the index is damaged" in refused(server)
        manifest.write_text(json.dumps(good))
        server.faults.extend([("manifest.json", "", None), ("manifest.json", "swap", b"{}")])
        assert "the index was replaced while it was fetched" in refused(server)
        server.always["keys.npy"] = ("swap", bytes(1_000_000))
        assert "keys.npy: the index is damaged" in refused(server)
        server.always["keys.npy"] = ("swap", (copy / "index" / "keys.npy").read_bytes()[:-1])
        assert "index: the index is damaged" in refused(server)
        server.always.clear()
        small = CacheConfig(dir=cache.dir, max_gb=0.000001, retries=0)
        assert refused(server, small).startswith(
            "data.cache.max_gb: 1e-06 is less than the index of"
        )
        server.always["manifest.json"] = ("status", 404)
        assert (
            "(HTTP 404 Not Found); index the shards with `mmscale data index` and upload"
            in refused(server)
        )
        assert {path.suffix for path in Path(cache.dir, "indexes").iterdir()} == {".lock"}
        server.always.clear()
        assert len(open_manifests([server.url], cache)) == 1


def test_an_index_cannot_send_the_reader_elsewhere(
    shards: Path, tmp_path: Path, cache: CacheConfig
) -> None:
    copy = tmp_path / "served"
    shutil.copytree(shards, copy)
    manifest = copy / "index" / "manifest.json"
    good = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(good | {"base": "file:///etc"}))
    with serve(copy) as server:
        (opened,) = open_manifests([server.url], cache)
        assert opened.base == server.url
    for base, words in [
        ("file:///etc", "no source that is read"),
        ("zip://x::http://h", "no source that is read"),
        ("https://user:word@host/x", "a user or password"),
    ]:
        manifest.write_text(json.dumps(good | {"base": base}))
        for act in (lambda: open_manifests([str(copy)], cache), lambda: verify_shards(copy)):
            with pytest.raises(UserError, match=words):
                act()


def test_a_cache_that_is_too_small_is_refused_at_once(
    server: FaultyServer, cache: CacheConfig
) -> None:
    whole = Dataset.open([server.url], cache, block=16)
    (extent,) = whole.extents.of_block(0)
    server.requests.clear()
    small = CacheConfig(dir=cache.dir, max_gb=extent.length / 1e9)
    with pytest.raises(
        UserError,
        match=r"^data\.cache\.max_gb: \S+ is less than the part of \S+ MB of the shard "
        r"shard-000000\.tar needs; raise it to \S+ or more$",
    ) as caught:
        Dataset.open([server.url], small, block=16)
    assert set(server.counts()) == {"manifest.json"}
    small.max_gb = float(str(caught.value).split()[-3])
    assert Dataset.open([server.url], small, block=16).read("image", 0)


def test_a_shard_that_cannot_be_fetched_is_a_sample_fault(
    server: FaultyServer, cache: CacheConfig
) -> None:
    dataset = Dataset.open([server.url], cache, block=16)
    server.always["shard-000001.tar"] = ("status", 404)
    assert dataset.read("image", 0)
    with pytest.raises(
        SampleFault, match=r"^shard shard-000001\.tar cannot be fetched \(HTTP 404 Not Found\)$"
    ):
        dataset.read("image", 50)


def test_a_field_that_arrives_wrong_is_a_fault_of_its_sample_alone(
    server: FaultyServer, shards: Path, cache: CacheConfig
) -> None:
    local = Dataset.open([str(shards)])
    dataset = Dataset.open([server.url], cache, block=16)
    facts = dataset.facts("audio", np.array([7]))[0]
    server.always["shard-000000.tar"] = ("corrupt", int(facts["offset"] + facts["size"] - 1))
    for copy in (dataset, pickle.loads(pickle.dumps(dataset))):  # of another process
        for sample in range(16):
            assert copy.read("image", sample) == local.read("image", sample)
            if sample != 7:
                assert copy.read("audio", sample) == local.read("audio", sample)
        with pytest.raises(
            SampleFault,
            match=r"^shard shard-000000\.tar changed since it was indexed \(CRC-32 differs\)$",
        ):
            copy.read("audio", 7)
    assert server.counts()["shard-000000.tar"] == 2
    server.always.clear()  # mended: the next start finds it
    assert Dataset.open([server.url], cache, block=16).read("audio", 7) == local.read("audio", 7)


def test_a_copy_that_loses_a_bit_later_is_fetched_again(
    server: FaultyServer, shards: Path, cache: CacheConfig
) -> None:
    local, dataset = (
        Dataset.open([str(shards)]),
        Dataset.open([server.url], cache, block=16),
    )
    assert dataset.read("image", 3) == local.read("image", 3)
    (copy,) = Path(cache.dir, "blocks").glob("??/*")
    copy.write_bytes(bytes(copy.stat().st_size))
    server.requests.clear()
    for sample in range(16):
        assert dataset.read("image", sample) == local.read("image", sample)
    assert len(server.requests) == 1


def test_a_server_without_ranges_gives_whole_shards(
    server: FaultyServer, shards: Path, cache: CacheConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    local = Dataset.open([str(shards)])
    server.ranges = False
    dataset = Dataset.open([server.url], cache, block=16)
    copies = [dataset, pickle.loads(pickle.dumps(dataset)), Dataset.open([server.url], cache)]
    assert all(same_samples(copy, local) for copy in copies)
    counts, sizes = server.counts(), [shard.bytes for shard in local.manifests[0].entries]
    # The first request asked for a part.
    assert [counts[f"shard-{number:06d}.tar"] for number in range(3)] == [2, 1, 1]
    kept = sorted(path.stat().st_size for path in Path(cache.dir, "blocks").glob("??/*"))
    assert kept == sorted(sizes)
    said = capfd.readouterr().err
    assert said.count("knows no ranges, so each shard is fetched whole") == 1
    assert f"mmscale: {server.url}: the server" in said


# -- batches
# ---------------------------------------------------------------------------------------------


def lines(module: list[str]) -> list[str]:
    return run_module(module).stdout.splitlines()


def test_same_order_and_batches_as_the_local_shards(
    server: FaultyServer,
    shards: Path,
    small_run: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setenv("MMSCALE_CACHE", str(tmp_path / "cache"))
    server.faults.extend([("0.tar", "status", 503), ("1.tar", "cut", 20_000)])
    command = ["mmscale", "data", "index", names(server), "--out", str(tmp_path / "out"), "--json"]
    report = json.loads(run_module(command).stdout)
    assert report["digest"] == Manifest.open(shards).digest and report["directory"] == str(
        tmp_path / "out"
    )
    requests = len(server.requests)
    local, indexed, remote = (
        [*small_run, f"data.sets.digits.shards=[{source}]", f"run.dir={tmp_path}/none"]
        for source in (shards, tmp_path / "out", server.url)
    )

    def order(changes: list[str], *more: str) -> list[str]:
        return lines(["mmscale", "data", "order", CONFIG, *changes, "--steps", "0:4", *more])

    expected = order(local)
    assert len(expected) == 16 and order(indexed) == expected
    asked = [name for name, _ in server.requests[requests:]]
    assert not [name for name in asked if name.endswith(".tar")], "the index has what plans need"
    two = ("--world", "2", "--nodes", "2")
    rows = [json.loads(line) for line in order(indexed, *two)]
    assert [row["rank"] for row in rows] == [0, 0, 1, 1] * 4, "each machine reads its own lanes"
    assert [row["keys"] for row in rows] == [json.loads(line)["keys"] for line in expected]
    assert order(local, *two) == order(local, "--world", "2") != order(indexed, *two)
    server.faults.extend(
        [("0.tar", "status", 503), ("1.tar", "cut", 20_000), ("2.tar", "corrupt", 9000)]
    )
    batches = ["checksums", CONFIG, "0:3", "0", "1"]
    expected = lines([*batches, "0", "4", *local])
    assert len(expected) == 12 and all(json.loads(line)["faults"] == [] for line in expected)
    assert lines([*batches, "2", "4", *indexed]) == expected
    assert not server.faults
    fetched = server.counts()["shard-000000.tar"]
    assert lines([*batches, "0", "4", *remote]) == expected
    assert server.counts()["shard-000000.tar"] == fetched  # named in another way, the same shards


# -- over S3
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket(shards: Path) -> Iterator[str]:
    """URL of a folder of a bucket with the shards and their index; the endpoint is in the
    environment.
    """
    with s3_server() as endpoint, pytest.MonkeyPatch.context() as environment:
        settings = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        for name, value in settings.items():
            environment.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # of another test's server
        client = boto3.client("s3")
        client.create_bucket(Bucket="speech")
        for path in [*shards.glob("*.tar"), *shards.glob("index/*")]:
            client.upload_file(str(path), "speech", f"train/{path.relative_to(shards)}")
        yield "s3://speech/train"


def test_s3_folder_is_listed_indexed_and_read(
    bucket: str, shards: Path, tmp_path: Path, cache: CacheConfig
) -> None:
    for number, source in enumerate((bucket + "/", f"{bucket}/shard-{{000000..000002}}.tar")):
        out = tmp_path / f"out{number}"
        manifest = index_sources([source], out, MediaConfig(), progress=False)
        assert manifest.digest == Manifest.open(shards).digest and manifest.base == bucket
    local = Dataset.open([str(shards)])
    assert same_samples(Dataset.open([str(out)], cache), local)
    assert same_samples(Dataset.open([bucket], CacheConfig(dir=str(tmp_path / "other"))), local)


def test_s3_names_are_taken_as_they_are(
    bucket: str, shards: Path, tmp_path: Path, cache: CacheConfig
) -> None:
    names = ["a b.tar", "c#1?%20.tar", "班.tar"]
    for name, path in zip(names, sorted(shards.glob("*.tar")), strict=True):
        boto3.client("s3").upload_file(str(path), "speech", f"odd/{name}")
    manifest = index_sources(["s3://speech/odd/"], tmp_path / "out", MediaConfig(), progress=False)
    assert manifest.shards == names
    odd, local = Dataset.open([str(tmp_path / "out")], cache), Dataset.open([str(shards)])
    assert all(odd.read("image", i) == local.read("image", i) for i in range(0, len(odd), 20))


def test_s3_files_that_are_not_there(bucket: str, tmp_path: Path) -> None:
    for source, words in [
        (f"{bucket}/gone.tar", "cannot be fetched (there is no such file)"),
        ("s3://nowhere/x.tar", "cannot be fetched (HTTP 404 Not Found)"),
        ("s3://speech/empty/", "cannot be listed (there is no such file)"),
        (f"{bucket}/index/", "no .tar shards"),
    ]:
        with pytest.raises(UserError) as caught:
            index_sources([source], tmp_path / "out", MediaConfig(), progress=False)
        assert words in str(caught.value)


def test_s3_faults(
    bucket: str, shards: Path, tmp_path: Path, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("mmscale.data.storage.remote_file.time.sleep", slept.append)
    with s3_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        passing = [
            (503, "SlowDown"),
            (500, "InternalError"),
            (503, "ServiceUnavailable"),
            (429, "TooManyRequests"),
        ]
        proxy.faults.extend(("0.tar", "status", status) for status in passing)
        proxy.faults.extend([("1.tar", "", None), ("1.tar", "cut", 20_000)])
        manifest = index_sources([bucket], tmp_path / "out", MediaConfig(), progress=False)
        assert (
            manifest.digest == Manifest.open(shards).digest and not proxy.faults and len(slept) == 5
        )
        proxy.always["shard-000002.tar"] = ("status", (503, "SlowDown"))
        with pytest.raises(
            UserError,
            match=r"shard-000002\.tar: cannot be fetched \(.*, 17 times in a row\); check",
        ):
            index_sources([bucket], tmp_path / "out", MediaConfig(), progress=False)
        proxy.always["shard-000002.tar"] = ("status", (403, "AccessDenied"))
        with pytest.raises(
            UserError,
            match=r"cannot be fetched \(HTTP 403 Forbidden\); "
            "check the URL, the network and the credentials",
        ):
            index_sources([bucket], tmp_path / "out", MediaConfig(), progress=False)
        dataset = Dataset.open([str(tmp_path / "out")], cache)
        with pytest.raises(SampleFault, match=r"shard-000002\.tar cannot be fetched"):
            dataset.read("image", len(dataset) - 1)
    s3fs.S3FileSystem.clear_instance_cache()


def test_s3_blocks_are_one_request_each_through_faults(
    bucket: str, shards: Path, tmp_path: Path, cache: CacheConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("mmscale.data.storage.remote_file.time.sleep", slept.append)
    local = Dataset.open([str(shards)])
    with s3_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        dataset = Dataset.open([bucket], cache, block=16)
        blocks = range(-(-len(dataset) // 16))
        extents = [extent for number in blocks for extent in dataset.extents.of_block(number)]
        proxy.requests.clear()
        assert same_samples(dataset, local)
        assert proxy.requests == [
            (f"GET /speech/train/{extent.shard.name}", f"bytes={extent.offset}-{extent.end - 1}")
            for extent in extents
        ]
        assert slept == []
        other = CacheConfig(dir=str(tmp_path / "other"), retries=3)
        dataset = Dataset.open([bucket], other, block=16)
        proxy.faults.extend(
            [
                ("0.tar", "status", (503, "SlowDown")),
                ("0.tar", "cut", 20_000),
                ("1.tar", "status", (500, "InternalError")),
                ("2.tar", "cut", 0),
            ]
        )
        assert same_samples(dataset, local) and not proxy.faults and len(slept) == 4
    s3fs.S3FileSystem.clear_instance_cache()
