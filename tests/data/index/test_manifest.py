"""The index as it is read: exact facts, field references, damage and change noticed, views of some
shards.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from indexed import (
    SAMPLES,
    Samples,
    bytes_of,
    edit_json,
    facts_of,
    present,
    write_shards,
)

from mmscale.config import CacheConfig, MediaConfig
from mmscale.data.index.build_index import build_index, has_index
from mmscale.data.index.index_files import FACTS, identity
from mmscale.data.index.manifest import Manifest, open_manifests
from mmscale.data.index.probe import kind_of
from mmscale.data.storage.shard_patterns import expand
from mmscale.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data", SAMPLES)


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    return build_index(folder, MediaConfig(), progress=False)


# -- what the index says
# ---------------------------------------------------------------------------------


def test_every_byte_of_every_sample_is_found(folder: Path, manifest: Manifest) -> None:
    for opened in (manifest, Manifest.open(folder)):
        assert len(opened) == 5 and opened.shards == [f"shard-{n:06d}.tar" for n in range(3)]
        assert [opened.shard_of(i) for i in range(5)] == [0, 0, 1, 1, 2]
        assert opened.fields == [
            "0.png",
            "1.png",
            "bin",
            "cls",
            "flac",
            "jpg",
            "json",
            "png",
            "txt",
            "wav",
            "webp",
        ]
        samples: Samples = {}
        for i in range(len(opened)):
            read = {field: bytes_of(opened, field, i) for field in opened.fields}
            samples[opened.key(i)] = {
                field: data for field, data in read.items() if data is not None
            }
        assert samples == SAMPLES


def test_header_facts(manifest: Manifest) -> None:
    def facts(field: str, i: int) -> tuple[int, int]:
        return int(manifest.column(field)[i]["a"]), int(manifest.column(field)[i]["b"])

    assert facts("png", 0) == (5, 7) and facts("jpg", 1) == (11, 3) and facts("webp", 4) == (8, 8)
    assert facts("flac", 2) == (1000, 8000) and facts("wav", 3) == (44, 22050)
    assert facts("txt", 0) == (6, 0) and facts("json", 0) == (12, 0) and facts("cls", 2) == (1, 0)
    assert (
        facts("txt", 1) == (0, 0) and manifest.column("txt")[1]["offset"] > 0
    )  # empty is not absent
    assert facts("bin", 3) == (0, 0) and manifest.column("png").dtype == np.dtype(FACTS)


def test_columns_are_memory_mapped(manifest: Manifest) -> None:
    assert isinstance(manifest.column("png").base, np.memmap)


def test_digest_is_of_the_content_only(tmp_path: Path, manifest: Manifest) -> None:
    same = build_index(write_shards(tmp_path / "elsewhere", SAMPLES), MediaConfig(), progress=False)
    other = SAMPLES | {"a": {"txt": b"changed"}}
    changed = build_index(write_shards(tmp_path / "changed", other), MediaConfig(), progress=False)
    assert len(manifest.digest) == 64
    assert manifest.digest == same.digest == identity(list(reversed(manifest.entries)))
    assert manifest.digest != changed.digest


# -- field references
# ------------------------------------------------------------------------------------


def test_locate_takes_the_first_ending_a_sample_has(manifest: Manifest) -> None:
    # png before webp, 0.png before 1.png
    assert facts_of(manifest, "image")["a"].tolist() == [5, 11, 0, 2, 9]
    assert present(manifest, "image") == [True, True, False, True, True]
    assert facts_of(manifest, "audio")["a"].tolist() == [0, 0, 1000, 44, 0]
    assert present(manifest, "text") == [True, True, False, False, False]
    assert present(manifest, "cls") == [False, False, True, False, False]
    assert present(manifest, "json.label.deep") == [True, False, False, False, False]


def test_text_falls_back(tmp_path: Path) -> None:
    write_shards(tmp_path, {"1": {"text": b"12"}, "2": {"text": b"123", "txt": b"1"}})
    manifest = build_index(tmp_path, MediaConfig(), progress=False)
    assert facts_of(manifest, "text")["a"].tolist() == [2, 1]


def test_locate_lists_the_fields_there_are(tmp_path: Path) -> None:
    manifest = build_index(
        write_shards(tmp_path, {"1": {"txt": b"1"}}), MediaConfig(), progress=False
    )
    with pytest.raises(
        UserError, match=f"{tmp_path}: no sample has field 'image'; fields there are: txt"
    ):
        manifest.locate("image")
    with pytest.raises(UserError, match=r"unknown field 'video'; use image"):
        manifest.locate("video")


def test_kinds() -> None:
    kinds = [
        kind_of(field)
        for field in ("0.png", "a.b.opus", "tiff", "text", "json", "cls", "npy", "pngx", "")
    ]
    assert kinds == ["image", "audio", "image", "text", "json", "cls", None, None, None]


# -- opening it
# ------------------------------------------------------------------------------------------


def test_missing_index_names_the_command(folder: Path) -> None:
    assert not has_index(folder)
    with pytest.raises(UserError, match=f"run `mmscale data index {folder}`"):
        Manifest.open(folder)


def test_changed_shards_are_noticed(folder: Path, manifest: Manifest) -> None:
    assert has_index(folder)
    shard = folder / manifest.shards[1]
    raw = shard.read_bytes()
    shard.write_bytes(raw + bytes(512))
    with pytest.raises(
        UserError, match=rf"{shard}: {len(raw) + 512} bytes, but {len(raw)} when it was indexed"
    ):
        Manifest.open(folder)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard}: missing"):
        Manifest.open(folder)
    shard.write_bytes(raw)
    (folder / "new.tar").write_bytes(raw)
    with pytest.raises(UserError, match=r"new\.tar: not in the index"):
        Manifest.open(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": "0" * 64},
        {"samples": 4},
        {"samples": "5"},
        {"shards": []},
        {"shards": [{"name": "../x.tar"}]},
        {"shards": None},
        {"fields": ["../../png"]},
        {"fields": [1]},
        {"problems": None},
    ],
)
def test_tampered_head_is_damage(folder: Path, manifest: Manifest, changes: dict[str, Any]) -> None:
    edit_json(folder, **changes)
    with pytest.raises(
        UserError, match=r"manifest\.json: the index is damaged; run `mmscale data index"
    ):
        Manifest.open(folder)


def test_a_shard_name_never_leads_out_of_the_folder(folder: Path, manifest: Manifest) -> None:
    shards = [vars(shard) | {"name": f"../{shard.name}"} for shard in manifest.entries]
    entries = [type(manifest.entries[0])(**shard) for shard in shards]
    edit_json(folder, shards=shards, digest=identity(entries))  # consistent, but hostile
    with pytest.raises(UserError, match="damaged"):
        Manifest.load(folder)


@pytest.mark.parametrize("name", ["keys", "key_ends", "field.png"])
@pytest.mark.parametrize("damage", ["short", "pickle", "type", "missing"])
def test_damaged_arrays(folder: Path, manifest: Manifest, name: str, damage: str) -> None:
    path = folder / "index" / f"{name}.npy"
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "pickle":
        np.save(path, np.array([{}] * 5, dtype=object), allow_pickle=True)
    elif damage == "type":
        np.save(path, np.zeros(5, np.float16))
    else:
        path.unlink()
    with pytest.raises(UserError, match=rf"{name}\.npy: the index is damaged"):
        Manifest.open(folder).column("png")


def test_other_version(folder: Path, manifest: Manifest) -> None:
    edit_json(folder, version=2)
    with pytest.raises(UserError, match="index version 2, this release reads 1"):
        Manifest.open(folder)


# -- some of the shards
# ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [[0], [2], [0, 1], [1, 2], [0, 2], [0, 1, 2]])
def test_restrict(manifest: Manifest, chosen: list[int]) -> None:
    rows = [i for i in range(5) if manifest.shard_of(i) in chosen]
    view = manifest.restrict([manifest.shards[n] for n in reversed(chosen)])
    assert len(view) == len(rows) and view.shards == [manifest.shards[n] for n in chosen]
    assert (view.digest == manifest.digest) == (len(chosen) == 3)
    for new, old in enumerate(rows):
        assert view.key(new) == manifest.key(old)
        assert view.place(view.shard_of(new)) == manifest.place(manifest.shard_of(old))
        assert all(view.column(field)[new] == manifest.column(field)[old] for field in view.fields)


def test_restrict_twice_is_restrict_once(manifest: Manifest) -> None:
    first, _, last = manifest.shards
    twice = manifest.restrict([first, last]).restrict([last])
    assert (
        twice.digest == manifest.restrict([last]).digest and twice.key(0) == "e" and len(twice) == 1
    )


def test_restrict_names_an_unknown_shard(folder: Path, manifest: Manifest) -> None:
    with pytest.raises(UserError, match=r"other\.tar: not in the index"):
        manifest.restrict([manifest.shards[0], "other.tar"])


def test_pickling_opens_again_instead_of_copying(manifest: Manifest) -> None:
    view = manifest.restrict(manifest.shards[::2])
    for original in (manifest, view):
        packed = pickle.dumps(original)
        copy = pickle.loads(packed)
        assert (
            len(packed) < 1000 and copy.digest == original.digest and copy.shards == original.shards
        )
        assert facts_of(copy, "image").tolist() == facts_of(original, "image").tolist()
        assert [copy.key(i) for i in range(len(copy))] == [
            original.key(i) for i in range(len(original))
        ]


def test_a_replaced_index_is_noticed_in_workers(folder: Path, manifest: Manifest) -> None:
    packed = pickle.dumps(manifest)
    (folder / manifest.shards[2]).unlink()
    build_index(folder, MediaConfig(), progress=False)
    with pytest.raises(UserError, match="replaced during the run"):
        pickle.loads(packed)


def test_open_folders_files_and_patterns(tmp_path: Path, folder: Path, manifest: Manifest) -> None:
    other = write_shards(tmp_path / "more", {"x": {"txt": b"x"}})
    build_index(other, MediaConfig(), progress=False)

    def opened(*shards: str) -> list[tuple[str, list[str]]]:
        return [
            (part.root.name, part.shards) for part in open_manifests(list(shards), CacheConfig())
        ]

    names = manifest.shards
    assert opened(f"{folder}") == [("data", names)]
    assert opened(f"{folder}/shard-{{000000..000001}}.tar") == [("data", names[:2])]
    assert opened(f"{folder}/{names[2]}", f"{other}", f"{folder}/{names[0]}") == [
        ("data", [names[0], names[2]]),
        ("more", ["shard-000000.tar"]),
    ]
    assert opened(f"{tmp_path}/{{data,more}}") == [("data", names), ("more", ["shard-000000.tar"])]
    (folder / names[1]).unlink()  # needed by the folder only
    assert opened(f"{folder}/{names[0]}") == [("data", names[:1])]


def test_open_manifests_names_what_is_wrong(folder: Path, manifest: Manifest) -> None:
    first = f"{folder}/{manifest.shards[0]}"
    for shards, words in [
        ([], "empty"),
        ([f"{folder}/shard-{{000002..000003}}.tar"], r"shard-000003\.tar: no such shard"),
        ([first, first], "named twice"),
        ([f"{folder}", first], "named twice"),
        ([first, f"{folder}/../data"], "named twice"),
        (["http://host/a.zip"], "neither a folder nor a .tar"),
    ]:
        with pytest.raises(UserError, match=words):
            open_manifests(shards, CacheConfig())


def test_brace_patterns(tmp_path: Path) -> None:
    assert expand(["a{08..11}b", "x"]) == ["a08b", "a09b", "a10b", "a11b", "x"]
    assert expand(["{8..11}"]) == ["8", "9", "10", "11"]
    assert expand(["{a,b}-{1..2}"]) == ["a-1", "a-2", "b-1", "b-2"]
    (tmp_path / "{x}").mkdir()
    assert expand([f"{tmp_path}/{{x}}"]) == [f"{tmp_path}/{{x}}"]
    for pattern in (
        "{a",
        "a}",
        "{{a,b},c}",
        "{abc}",
        "{5..1}",
        "{0..9999999}",
        "{1..1000}{1..1000}{1..2}",
    ):
        with pytest.raises(UserError, match="; "):
            expand([pattern])
