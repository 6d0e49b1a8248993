"""A set that grew: its new shards alone are read, and the index is that of a whole pass."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from indexed import note_read
from PIL import Image
from servers import serve

from mmscale.config import MediaConfig
from mmscale.data.index.build_index import IndexPass, build_index, index_sources
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.verify_shards import verify_shards
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.data.worker_pool import WorkerPool
from mmscale.errors import UserError

MEDIA = MediaConfig(max_image_pixels=10_000)


def add_shard(folder: Path, number: int, samples: int = 6, text: int = 20) -> Path:
    """One shard: pictures of which one is too large, and texts of about ``text`` bytes."""
    with ShardWriter(folder / "new", samples_per_shard=1000) as writer:
        for sample in range(samples):
            buffer = io.BytesIO()
            side = 200 if sample == 3 else 16 + number
            Image.new("RGB", (side, side), (number, sample, 0)).save(
                buffer, "PNG", compress_level=0
            )
            fields = {"png": buffer.getvalue(), "txt": b"w" * text}
            if sample % 2:
                fields["json"] = json.dumps({"n": sample}).encode()
            writer.write(f"s{number}-{sample}", fields)
    path = folder / f"shard-{number:03d}.tar"
    (written,) = (folder / "new").glob("*.tar")
    written.rename(path)
    shutil.rmtree(folder / "new")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(3):
        add_shard(shards, number)
    return shards


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are read whole, as they are."""
    return note_read(monkeypatch)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "index").iterdir())}


def whole(folder: Path, media: MediaConfig = MEDIA) -> dict[str, bytes]:
    """The index that a pass over every shard makes."""
    build_index(folder, media, progress=False, how=IndexPass(every=True))
    return content(folder)


def test_new_shards_alone_are_read(folder: Path, read: list[str]) -> None:
    build_index(folder, MEDIA, progress=False)
    add_shard(folder, 5)
    (folder / "shard-001.tar").unlink()
    add_shard(folder, 4)
    read.clear()
    manifest = build_index(folder, MEDIA, progress=False)
    assert read == ["shard-004.tar", "shard-005.tar"]
    assert len(manifest) == 4 * 5 and manifest.problem_count == 4
    grown = content(folder)
    assert "texts.json.npy" in grown
    read.clear()
    assert whole(folder) == grown and len(read) == 4
    read.clear()
    build_index(folder, MEDIA, progress=False)
    assert not read and content(folder) == grown and not verify_shards(folder)


def test_what_changed_is_read_again(folder: Path, read: list[str]) -> None:
    build_index(folder, MEDIA, progress=False)
    path = folder / "shard-001.tar"
    before = path.stat()
    raw = bytearray(path.read_bytes())
    raw[600] ^= 1  # in the payload; same size, and the old time of change
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    read.clear()
    changed = content(folder)
    build_index(folder, MEDIA, progress=False)
    assert (
        read == ["shard-001.tar"] and content(folder)["manifest.json"] != changed["manifest.json"]
    )
    read.clear()
    other = MediaConfig(max_image_pixels=100_000)
    assert build_index(folder, other, progress=False).problem_count == 0 and len(read) == 3
    (folder / "index" / "stamps.json").write_text("[")
    read.clear()
    build_index(folder, other, progress=False)
    assert len(read) == 3, "an index without sound stamps says nothing"


@pytest.mark.parametrize("texts", [(20, 30_000), (30_000, 20)])
def test_whether_texts_are_kept_is_decided_anew(folder: Path, texts: tuple[int, int]) -> None:
    """Many texts in the old shards and few in the new, large ones; and the other way round."""
    shutil.rmtree(folder)
    folder.mkdir()
    add_shard(folder, 0, samples=40, text=texts[0])
    build_index(folder, MEDIA, progress=False)
    kept = any(name.startswith("texts.") for name in content(folder))
    assert kept == (texts[0] == 20)
    add_shard(folder, 1, samples=40, text=texts[1])
    build_index(folder, MEDIA, progress=False)
    assert content(folder) == whole(folder)


def test_texts_that_become_few_are_kept_by_reading_all(folder: Path, read: list[str]) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    add_shard(folder, 0, samples=10, text=9_000)
    build_index(folder, MEDIA, progress=False)
    assert not any(name.startswith("texts.") for name in content(folder))
    with ShardWriter(folder / "new", samples_per_shard=10) as writer:
        writer.write("large", {"bin": bytes(20_000_000)})
    next((folder / "new").glob("*.tar")).rename(folder / "shard-009.tar")
    shutil.rmtree(folder / "new")
    read.clear()
    build_index(folder, MEDIA, progress=False)
    assert read == ["shard-009.tar", "shard-000.tar", "shard-009.tar"]
    assert "texts.txt.npy" in content(folder) and content(folder) == whole(folder)


def test_processes_make_the_same_index(folder: Path) -> None:
    expected = whole(folder)
    with WorkerPool(2) as pool:
        build_index(folder, MEDIA, progress=False, how=IndexPass(pool=pool, every=True))
        assert content(folder) == expected
        assert verify_shards(folder, pool=pool) == []
        (folder / "shard-000.tar").rename(folder / "shard-007.tar")
        assert verify_shards(folder, pool=pool) == verify_shards(folder) != []


def test_all_bad_shards_are_named_and_the_rest_can_be_indexed(folder: Path, capsys) -> None:
    build_index(folder, MEDIA, progress=False)
    before = content(folder)
    (folder / "shard-003.tar").write_bytes((folder / "shard-001.tar").read_bytes()[:1500])
    (folder / "shard-004.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    named = r"^2 of 5 shards cannot be indexed, named above; .*--skip-bad"
    with pytest.raises(UserError, match=named):
        build_index(folder, MEDIA, progress=False)
    said = capsys.readouterr().err
    assert "shard-003.tar: byte" in said and "shard-004.tar: byte 0: a gzip-compressed" in said
    assert content(folder) == before, "the index that was there stays"

    manifest = build_index(folder, MEDIA, progress=False, how=IndexPass(skip_bad=True))
    assert len(manifest) == 15 and sorted(manifest.skipped) == ["shard-003.tar", "shard-004.tar"]
    Manifest.open(folder)
    faults = verify_shards(folder)
    assert len(faults) == 2 and all("skipped when it was indexed" in fault for fault in faults)
    (folder / "shard-004.tar").unlink()
    with pytest.raises(UserError, match=r"shard-003\.tar: byte"):
        build_index(folder, MEDIA, progress=False)
    (folder / "shard-003.tar").unlink()
    build_index(folder, MEDIA, progress=False)
    assert content(folder) == before


def test_unchanged_remote_shards_are_known_by_their_version(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with serve(folder) as server:
        first = [f"{server.url}/shard-{{000..002}}.tar"]
        index_sources(first, out, MEDIA, progress=False)
        add_shard(folder, 3)
        server.sent.clear()
        manifest = index_sources(
            [f"{server.url}/shard-{{000..003}}.tar"], out, MEDIA, progress=False
        )
        size = (folder / "shard-003.tar").stat().st_size
        assert server.sent["shard-003.tar"] == size and len(manifest) == 20
        assert all(server.sent[f"shard-{number:03d}.tar"] <= 512 for number in range(3))
        assert manifest.digest == build_index(folder, MEDIA, progress=False).digest


def test_the_command_names_what_is_bad_and_skips_it(folder: Path) -> None:
    (folder / "shard-003.tar").write_bytes(b"not a tar" * 200)
    command = [sys.executable, "-m", "mmscale", "data", "index", str(folder)]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 2 and "shard-003.tar: byte 0" in failed.stderr
    done = subprocess.run(
        [*command, "--skip-bad", "--workers", "2", "--json"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["samples"] == 18
