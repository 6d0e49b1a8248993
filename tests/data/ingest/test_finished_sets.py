"""A pack of several sets that was killed continues with the set that is missing."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from indexed import picture
from packed_sets import packed, read_shards

from mmscale.data.ingest.pack import pack
from mmscale.data.ingest.pack_state import FOLDER, PackState
from mmscale.errors import UserError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for split in ("test", "train", "val"):
        for number in range(3):
            path = tmp_path / "src" / split / "cat" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(number + 1, 2))
    return tmp_path / "src"


class Stop(Exception):
    """Raised by the tests in the midst of a pack."""


def stop_in(monkeypatch: pytest.MonkeyPatch, source: Path, out: Path, name: str, at: str) -> None:
    """A pack that ends with an exception when the set ``name`` comes to a method of `PackState`."""
    method = getattr(PackState, at)

    def stop(state: PackState, *arguments):
        if state.folder.parent.name == name:
            raise Stop
        return method(state, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(PackState, at, stop)
        pack(source, out, progress=False)


def inodes(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_ino for path in sorted(folder.rglob("*.tar"))}


@pytest.mark.parametrize("at", ["__enter__", "add", "publish", "close"])
def test_complete_sets_are_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    whole = packed(source, tmp_path / "whole")
    out = tmp_path / "out"
    stop_in(monkeypatch, source, out, "train", at)
    kept = inodes(out / "test")
    assert len(kept) == 1 and (out / FOLDER / "sets.jsonl").exists()
    manifests = pack(source, out, progress=False)
    assert {name: len(manifest) for name, manifest in manifests.items()} == {
        "test": 3, "train": 3, "val": 3,
    }  # fmt: skip
    assert {name: read_shards(out / name) for name in manifests} == whole
    assert inodes(out / "test") == kept
    assert not list(out.rglob(FOLDER))


def test_a_row_that_a_kill_cut_short_is_passed_over(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stop_in(monkeypatch, source, out, "val", "__enter__")
    rows = out / FOLDER / "sets.jsonl"
    rows.write_text(rows.read_text() + '{"set": "va')
    stop_in(monkeypatch, source, out, "val", "close")
    read = []
    for line in rows.read_text().splitlines():
        with contextlib.suppress(ValueError):
            read.append(json.loads(line)["set"])
    assert read == ["test", "train", "val"]
    assert pack(source, out, progress=False).keys() == {"test", "train", "val"}


def test_what_changed_in_a_complete_set_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stop_in(monkeypatch, source, out, "train", "__enter__")
    (source / "test" / "cat" / "0.png").write_bytes(picture(9, 9))
    with pytest.raises(UserError, match=rf"{out}/test: packed before from other samples or with o"):
        pack(source, out, progress=False)


def test_shards_of_other_origin_are_left_alone(source: Path, tmp_path: Path) -> None:
    for place in ("", "train"):
        out = tmp_path / f"out-{place}"
        (out / place).mkdir(parents=True)
        (out / place / "mine.tar").write_bytes(b"mine")
        with pytest.raises(UserError, match=r"already holds shards \(mine\.tar\); name an empty"):
            pack(source, out, progress=False)
        assert [path for path in out.rglob("*") if path.is_file()] == [out / place / "mine.tar"]
    packed(source, tmp_path / "again")
    with pytest.raises(UserError, match="already holds shards"):
        pack(source, tmp_path / "again", progress=False)


def test_an_unfinished_pack_of_one_set_is_not_mixed_in(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def stop(*arguments):
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(PackState, "publish", stop)
        pack(source / "train", out, progress=False)
    with pytest.raises(UserError, match="an unfinished pack of one set is there"):
        pack(source, out, progress=False)
    assert (out / FOLDER / "plan.json").exists()
