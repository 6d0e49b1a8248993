"""The index: exact facts, broken samples left out, damage and change noticed, views of some shards."""

from __future__ import annotations

import io
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmscale.config import CacheConfig, MediaConfig
from mmscale.data import index, manifest_writer
from mmscale.data.index import build_index, has_index, verify
from mmscale.data.manifest import Manifest, open_manifests
from mmscale.data.pack import ShardWriter
from mmscale.data.probe import kind_of, probe
from mmscale.data.shard_list import expand
from mmscale.data.stored_index import FACTS, identity
from mmscale.data.tar import scan
from mmscale.errors import SampleFault, UserError


def picture(width: int, height: int, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (width, height, 0)).save(buffer, format)
    return buffer.getvalue()


def sound(frames: int, rate: int, format: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((frames, 2), np.int16), rate, format=format)
    return buffer.getvalue()


Samples = dict[str, dict[str, bytes]]


def write_shards(folder: Path, samples: Samples, per_shard: int = 2) -> Path:
    with ShardWriter(folder, samples_per_shard=per_shard) as writer:
        for key, fields in samples.items():
            writer.write(key, fields)
    return folder


SAMPLES: Samples = {
    "a": {"png": picture(5, 7), "txt": "数字 one".encode(), "json": b'{"label": 1}'},
    "b": {"jpg": picture(11, 3, "JPEG"), "txt": b""},
    "班/c": {"flac": sound(1000, 8000, "FLAC"), "cls": b"4"},
    "d": {"0.png": picture(2, 2), "1.png": picture(3, 3), "wav": sound(44, 22050), "bin": b"\0\1"},
    "e": {"png": picture(9, 9), "webp": picture(8, 8, "WEBP")},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data", SAMPLES)


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    return build_index(folder, MediaConfig(), progress=False)


def shard_path(manifest: Manifest, number: int) -> Path:
    place = manifest.place(number)
    return Path(place.base) / place.shard.name


def facts_of(manifest: Manifest, reference: str) -> np.ndarray:
    return manifest.locate(reference).facts(np.arange(len(manifest)))


def present(manifest: Manifest, reference: str) -> list[bool]:
    return (facts_of(manifest, reference)["offset"] > 0).tolist()


def bytes_of(manifest: Manifest, field: str, i: int) -> bytes | None:
    """Payload of a field by the index's own facts."""
    facts = manifest.column(field)[i]
    if not facts["offset"]:
        return None
    raw = shard_path(manifest, manifest.shard_of(i)).read_bytes()
    data = raw[int(facts["offset"]) : int(facts["offset"] + facts["size"])]
    assert zlib.crc32(data) == facts["crc"]
    return data


def edit_json(folder: Path, **changes: Any) -> None:
    path = folder / "index" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# -- what the index says ---------------------------------------------------------------------------------


def test_every_byte_of_every_sample_is_found(folder: Path, manifest: Manifest) -> None:
    for one in (manifest, Manifest.open(folder)):
        assert len(one) == 5 and one.shards == [f"shard-{n:06d}.tar" for n in range(3)]
        assert [one.shard_of(i) for i in range(5)] == [0, 0, 1, 1, 2]
        assert one.fields == [
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
        found: Samples = {}
        for i in range(len(one)):
            read = {field: bytes_of(one, field, i) for field in one.fields}
            found[one.key(i)] = {field: data for field, data in read.items() if data is not None}
        assert found == SAMPLES


def test_header_facts(manifest: Manifest) -> None:
    def facts(field: str, i: int) -> tuple[int, int]:
        return int(manifest.column(field)[i]["a"]), int(manifest.column(field)[i]["b"])

    assert facts("png", 0) == (5, 7) and facts("jpg", 1) == (11, 3) and facts("webp", 4) == (8, 8)
    assert facts("flac", 2) == (1000, 8000) and facts("wav", 3) == (44, 22050)
    assert facts("txt", 0) == (6, 0) and facts("json", 0) == (12, 0) and facts("cls", 2) == (1, 0)
    assert facts("txt", 1) == (0, 0) and manifest.column("txt")[1]["offset"] > 0  # empty is not absent
    assert facts("bin", 3) == (0, 0) and manifest.column("png").dtype == np.dtype(FACTS)


def test_columns_are_memory_mapped(manifest: Manifest) -> None:
    assert isinstance(manifest.column("png"), np.memmap)


def test_digest_is_of_the_content_only(tmp_path: Path, manifest: Manifest) -> None:
    same = build_index(write_shards(tmp_path / "elsewhere", SAMPLES), MediaConfig(), progress=False)
    other = SAMPLES | {"a": {"txt": b"changed"}}
    changed = build_index(write_shards(tmp_path / "changed", other), MediaConfig(), progress=False)
    assert len(manifest.digest) == 64
    assert manifest.digest == same.digest == identity(list(reversed(manifest.entries)))
    assert manifest.digest != changed.digest


# -- field references ------------------------------------------------------------------------------------


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
    manifest = build_index(write_shards(tmp_path, {"1": {"txt": b"1"}}), MediaConfig(), progress=False)
    with pytest.raises(UserError, match=f"{tmp_path}: no sample has field 'image'; fields there are: txt"):
        manifest.locate("image")
    with pytest.raises(UserError, match=r"unknown field 'video'; use image"):
        manifest.locate("video")


def test_kinds() -> None:
    kinds = [
        kind_of(field) for field in ("0.png", "a.b.opus", "tiff", "text", "json", "cls", "npy", "pngx", "")
    ]
    assert kinds == ["image", "audio", "image", "text", "json", "cls", None, None, None]


# -- broken samples --------------------------------------------------------------------------------------

BROKEN: Samples = {
    "picture": {"png": b"no picture", "txt": b"x"},
    "pixels": {"png": picture(40, 30)},
    "sound": {"wav": b"RIFF"},
    "long": {"flac": sound(3000, 1000, "FLAC")},
    "utf8": {"txt": b"\xff"},
    "json": {"json": b"{'a': 1}"},
    "deep": {"json": b"[" * 5000},
    "big": {"cls": b"1" * 9000},
}


def test_broken_samples_are_left_out_and_listed(tmp_path: Path) -> None:
    media = MediaConfig(max_image_pixels=1000, max_audio_s=2.0, max_file_bytes=8000)
    mixed = {"good1": {"txt": b"1"}} | BROKEN | {"good2": {"txt": b"2"}}
    manifest = build_index(write_shards(tmp_path, mixed, 3), media, progress=False)
    assert [manifest.key(i) for i in range(len(manifest))] == ["good1", "good2"]
    assert [manifest.shard_of(i) for i in range(2)] == [0, 3]
    lines = [json.loads(line) for line in (tmp_path / "index" / "problems.jsonl").read_text().splitlines()]
    reasons = {line["key"]: line["reason"] for line in lines}
    assert manifest.problem_count == len(lines) == len(BROKEN) and reasons.keys() == BROKEN.keys()
    for key, word in {
        "picture": "not a picture",
        "pixels": "40x30 pixels is over media.max_image_pixels=1000",
        "sound": "unreadable sound header",
        "long": "3.0 s is over media.max_audio_s=2",
        "utf8": "not UTF-8",
        "json": "not valid JSON",
        "deep": "nested too deep",
        "big": "9000 bytes are over media.max_file_bytes=8000",
    }.items():
        assert word in reasons[key]
    where = {member.name: member.offset for path in sorted(tmp_path.glob("*.tar")) for member in scan(path)}
    for line in lines:
        assert line["offset"] == where[f"{line['key']}.{line['field']}"]
    warnings = list(manifest.problems())
    assert len(warnings) == len(BROKEN) and all("\n" not in line for line in warnings)
    assert "shard-000000.tar" in warnings[0] and "'picture' left out: png" in warnings[0]


def test_large_pictures_are_judged_by_our_limit_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    assert probe("image", picture(50, 60), MediaConfig()) == (50, 60)
    assert Image.MAX_IMAGE_PIXELS == 4
    with pytest.raises(SampleFault, match="max_image_pixels"):
        probe("image", picture(50, 60), MediaConfig(max_image_pixels=2999))


def test_oversized_members_are_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, {"1": {"txt": b"1" * (3 << 20)}, "2": {"txt": b"2"}, "3": {"mp4": bytes(3 << 20)}})
    reads: list[int] = []
    read = index._HashingReader.read
    monkeypatch.setattr(
        index._HashingReader, "read", lambda self, size: reads.append(size) or read(self, size)
    )
    manifest = build_index(tmp_path, MediaConfig(max_file_bytes=1000), progress=False)
    assert max(reads) <= 1 << 20
    assert [manifest.key(i) for i in range(len(manifest))] == [
        "2",
        "3",
    ]  # nothing reads an mp4: any size is fine
    assert manifest.column("mp4")["crc"].tolist() == [0, zlib.crc32(bytes(3 << 20))]


def test_field_names_outside_the_allowed_ones(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name in ("1.png copy", "2.txt", "3." + "x" * 65):
            archive.addfile(tarfile.TarInfo(name))
    manifest = build_index(tmp_path, MediaConfig(), progress=False)
    assert len(manifest) == 1 and manifest.fields == ["txt"] and manifest.problem_count == 2


def test_too_many_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_writer, "MAX_FIELDS", 3)
    write_shards(tmp_path, {str(n): {f"{n}.png": picture(1, 1)} for n in range(4)})
    with pytest.raises(
        UserError, match=r"shard-000001.tar: field '3.png' is one of more than 3; .*write other dots"
    ):
        build_index(tmp_path, MediaConfig(), progress=False)


def test_no_usable_sample(tmp_path: Path) -> None:
    write_shards(tmp_path, {"1": {"png": b""}})
    with pytest.raises(
        UserError, match=r"no usable sample; 1 broken members are listed in .*problems\.jsonl"
    ):
        build_index(tmp_path, MediaConfig(), progress=False)


# -- building it -----------------------------------------------------------------------------------------


def test_a_new_index_replaces_the_old_and_readers_keep_theirs(folder: Path, manifest: Manifest) -> None:
    png = manifest.column("png")
    before = png.tolist()
    write_shards(folder / "more", {"z": {"txt": b"z"}})
    os.replace(folder / "more" / "shard-000000.tar", folder / "added.tar")
    (folder / "more").rmdir()
    fresh = build_index(folder, MediaConfig(), progress=False)
    assert len(fresh) == 6 and fresh.digest != manifest.digest and fresh.key(0) == "z"
    assert png.tolist() == before
    assert sorted(entry.name for entry in folder.iterdir() if entry.suffix != ".tar") == ["index"]


def test_a_tar_fault_stops_and_leaves_the_old_index(folder: Path, manifest: Manifest) -> None:
    (folder / "zz.tar").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match=r"zz\.tar: byte 0"):
        build_index(folder, MediaConfig(), progress=False)
    (folder / "zz.tar").unlink()
    assert Manifest.open(folder).digest == manifest.digest
    assert not [entry for entry in folder.iterdir() if entry.name.startswith(".")]


def test_a_failed_exchange_puts_the_old_index_back(
    folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail_for_new(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError("disk full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(OSError, match="disk full"):
        build_index(folder, MediaConfig(), progress=False)
    assert Manifest.open(folder).digest == manifest.digest


def test_folders_without_shards(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        build_index(tmp_path / "missing", MediaConfig(), progress=False)
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.tar\.gz is compressed; decompress"):
        build_index(tmp_path, MediaConfig(), progress=False)


# -- opening it ------------------------------------------------------------------------------------------


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
    with pytest.raises(UserError, match=r"manifest\.json: the index is damaged; run `mmscale data index"):
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


# -- some of the shards ----------------------------------------------------------------------------------


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
    assert twice.digest == manifest.restrict([last]).digest and twice.key(0) == "e" and len(twice) == 1


def test_restrict_names_an_unknown_shard(folder: Path, manifest: Manifest) -> None:
    with pytest.raises(UserError, match=r"other\.tar: not in the index"):
        manifest.restrict([manifest.shards[0], "other.tar"])


def test_pickling_opens_again_instead_of_copying(manifest: Manifest) -> None:
    view = manifest.restrict(manifest.shards[::2])
    for one in (manifest, view):
        packed = pickle.dumps(one)
        copy = pickle.loads(packed)
        assert len(packed) < 1000 and copy.digest == one.digest and copy.shards == one.shards
        assert facts_of(copy, "image").tolist() == facts_of(one, "image").tolist()
        assert [copy.key(i) for i in range(len(copy))] == [one.key(i) for i in range(len(one))]


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
        return [(one.root.name, one.shards) for one in open_manifests(list(shards), CacheConfig())]

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
    for pattern in ("{a", "a}", "{{a,b},c}", "{abc}", "{5..1}", "{0..9999999}", "{1..1000}{1..1000}{1..2}"):
        with pytest.raises(UserError, match="; "):
            expand([pattern])


# -- verify ----------------------------------------------------------------------------------------------


def test_verify_finds_nothing_in_sound_shards(folder: Path, manifest: Manifest) -> None:
    assert verify(folder) == []


def test_verify_names_shard_and_key_of_a_flipped_bit(folder: Path, manifest: Manifest) -> None:
    facts = manifest.column("wav")[3]
    shard = shard_path(manifest, 1)
    raw = bytearray(shard.read_bytes())
    raw[int(facts["offset"]) + 50] ^= 1
    shard.write_bytes(raw)
    faults = verify(folder)
    assert faults == [
        f"{shard}: byte {facts['offset']}: sample 'd': wav: differs from the index",
        f"{shard}: SHA-256 differs from the index",
    ]


def test_verify_sees_a_flip_outside_of_payloads(folder: Path, manifest: Manifest) -> None:
    shard = shard_path(manifest, 2)
    raw = bytearray(shard.read_bytes())
    raw[int(manifest.column("png")[4]["offset"] + manifest.column("png")[4]["size"])] ^= 1  # padding
    shard.write_bytes(raw)
    assert verify(folder) == [f"{shard}: SHA-256 differs from the index"]


def test_verify_names_missing_cut_and_added_shards(folder: Path, manifest: Manifest) -> None:
    first, second, third = (folder / name for name in manifest.shards)
    (folder / "z.tar").write_bytes(third.read_bytes())
    third.unlink()
    second.write_bytes(second.read_bytes()[:1000])
    faults = verify(folder)
    assert [fault.split(": ")[0] for fault in faults] == [
        f"{folder / 'z.tar'}",
        f"{second}",
        f"{second}",
        f"{third}",
    ]
    assert "not in the index" in faults[0] and "1000 bytes, but" in faults[1] and "byte " in faults[2]
    assert not any(str(first) in fault for fault in faults)


def test_verify_sees_damage_of_the_index_itself(folder: Path, manifest: Manifest) -> None:
    path = folder / "index" / "field.txt.npy"
    column = np.load(path)
    column["crc"][0] ^= 1
    np.save(path, column)
    assert [fault.split(": ", 2)[2] for fault in verify(folder)] == [
        "sample 'a': txt: differs from the index"
    ]
