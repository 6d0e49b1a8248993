"""Local shards that cannot be written beside are indexed elsewhere; the index stands for them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import plans
import pytest
import torch
from indexed import SAMPLES, note_read, write_shards

from mmscale.cli import main
from mmscale.config import Config, MediaConfig, SetConfig, TaskConfig
from mmscale.data.index.build_index import build_index, index_sources
from mmscale.data.index.dataset import Dataset
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.verify_shards import verify_shards
from mmscale.data.loading.assembler import Assembler
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

MEDIA = MediaConfig()


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "mount", SAMPLES)


@pytest.fixture
def out(mount: Path, tmp_path: Path) -> Path:
    out = tmp_path / "indexes" / "train"
    index_sources([str(mount)], out, MEDIA, progress=False)
    return out


@pytest.fixture
def read(out: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are read whole from now on."""
    return note_read(monkeypatch)


def test_nothing_is_written_beside_the_shards(mount: Path, out: Path) -> None:
    assert not (mount / "index").exists() and os.listdir(out) == ["index"]


def test_it_reads_as_an_index_beside_them(mount: Path, out: Path, tmp_path: Path) -> None:
    there, elsewhere = Dataset.open([str(out)]), tmp_path / "copy"
    shutil.copytree(mount, elsewhere)
    build_index(elsewhere, MEDIA, progress=False)
    beside = Dataset.open([str(elsewhere)])
    assert there.digests == beside.digests and there.extents is None
    for sample in range(len(beside)):
        assert there.key(sample) == beside.key(sample)
        for field in ("image", "audio", "text", "cls", "json.label"):
            try:
                data = beside.read(field, sample)
            except Exception as error:
                with pytest.raises(type(error)):
                    there.read(field, sample)
            else:
                assert there.read(field, sample) == data
    assert verify_shards(out) == []


def test_a_run_sees_the_same_batches(mount: Path, out: Path, tmp_path: Path) -> None:
    batches = []
    for name in (out, shutil.copytree(mount, tmp_path / "copy")):
        if name != out:
            build_index(name, MEDIA, progress=False)
        config = Config(media=MediaConfig(image_patch=8, max_image_tokens=20))
        task = TaskConfig(input=["image"], target="text")
        config.data.sets = {"them": SetConfig(shards=[str(name)], tasks=[task])}
        config.data.seq_len, config.data.sequences = 64, 2
        tokenizer = Tokenizer.train(["数字 one"] * 3, 300)
        plan = plans.make_plan(config, tokenizer)
        step = plan.step(3)
        batches.append(Assembler(config, plan, tokenizer).batch(step, step.sequences))
    here, copy = batches
    assert (
        not here.faults and here.keys == copy.keys and torch.equal(here.tokens_BL, copy.tokens_BL)
    )
    assert all(map(torch.equal, here.image_N3HW, copy.image_N3HW)) and len(here.image_N3HW)


def test_a_config_names_the_folder_of_the_index(mount: Path, out: Path, capsys) -> None:
    main(["data", "verify", str(out), "--workers", "1"])
    assert "no fault found" in capsys.readouterr().out
    page = out.parent / "page.html"
    main(["data", "inspect", str(out), "--html", str(page), "--workers", "0"])
    assert page.is_file()


def test_other_shards_are_noticed(mount: Path, out: Path) -> None:
    shard = mount / "shard-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    remedy = f"run `mmscale data index {mount} --out {out}`"
    with pytest.raises(UserError, match=f"{shard}: .* bytes, but .*{remedy}"):
        Manifest.open(out)
    shard.write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    assert any(str(shard) in fault for fault in verify_shards(out))
    shard.write_bytes(whole)
    (mount / "x.tar").write_bytes(whole)
    with pytest.raises(UserError, match=rf"x\.tar: not in the index; remove it or {remedy}"):
        Manifest.open(out)
    assert f"{mount}/x.tar: not in the index" in verify_shards(out)


def test_a_mount_that_moved_is_told_and_not_read_again(
    mount: Path, out: Path, read: list[str]
) -> None:
    digest = Manifest.open(out).digest
    moved = mount.rename(mount.parent / "moved")
    with pytest.raises(
        UserError,
        match=rf"{mount}: the folder that holds the shards of {out} cannot be read \(No such file "
        rf"or directory\); mount it there, or, where they moved, `mmscale data index FOLDER --out "
        rf"{out}`",
    ):
        Manifest.open(out)
    # A copy that keeps the times, as of another mount, has other inodes.
    copy = shutil.copytree(moved, mount.parent / "copy")
    for place in (moved, copy):
        now = index_sources([str(place)], out, MEDIA, progress=False)
        assert now.digest == digest and now.base == place and read == []
        assert verify_shards(out) == []
    os.utime(copy / "shard-000000.tar")
    index_sources([str(copy)], out, MEDIA, progress=False)
    assert read == ["shard-000000.tar"]


def test_a_relative_mount_is_found_from_anywhere(
    mount: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["data", "index", "mount", "--out", "here", "--workers", "1"])
    monkeypatch.chdir("/")
    assert Manifest.open(tmp_path / "here").base == mount


def test_the_folder_itself_is_no_other_place(mount: Path) -> None:
    manifest = index_sources([str(mount)], mount, MEDIA, progress=False)
    assert manifest.base == mount == manifest.root
    assert "folder" not in json.loads((mount / "index" / "manifest.json").read_text())


def test_out_holds_no_shards_of_its_own(mount: Path, tmp_path: Path) -> None:
    other = write_shards(tmp_path / "other", SAMPLES)
    with pytest.raises(UserError, match=f"--out {other}: holds shards of its own"):
        index_sources([str(mount)], other, MEDIA, progress=False)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UserError, match=f"--out {file}: cannot be made"):
        index_sources([str(mount)], file, MEDIA, progress=False)


def test_some_of_the_shards(out: Path) -> None:
    manifest = Manifest.open(out)
    some = manifest.restrict(["shard-000001.tar"])
    assert [some.key(row) for row in range(len(some))] == ["班/c", "d"]
