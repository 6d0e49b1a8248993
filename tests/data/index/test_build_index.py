"""Building and verifying an index: broken samples are reported, a failure loses nothing."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from indexed import (
    SAMPLES,
    Samples,
    picture,
    shard_path,
    sound,
    write_shards,
)
from PIL import Image

from mmscale.config import MediaConfig
from mmscale.data.index import index_writer, shard_reader
from mmscale.data.index.build_index import build_index
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.probe import probe
from mmscale.data.index.tar_headers import scan
from mmscale.data.index.verify_shards import verify_shards
from mmscale.errors import SampleFault, UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "data", SAMPLES)


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    return build_index(folder, MediaConfig(), progress=False)


# -- broken samples
# --------------------------------------------------------------------------------------

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
    lines = [
        json.loads(line)
        for line in (tmp_path / "index" / "problems.jsonl").read_text().splitlines()
    ]
    reasons = {line["key"]: line["reason"] for line in lines}
    assert manifest.problem_count == len(lines) == len(BROKEN) and reasons.keys() == BROKEN.keys()
    for key, word in {
        "picture": "not a picture",
        "pixels": "40x30 pixels is over media.max_image_pixels=1000",
        "sound": "not a sound in a supported format",
        "long": "3.0 s is over media.max_audio_s=2",
        "utf8": "not UTF-8",
        "json": "not valid JSON",
        "deep": "nested too deep",
        "big": "9000 bytes are over media.max_file_bytes=8000",
    }.items():
        assert word in reasons[key]
    where = {
        member.name: member.offset
        for path in sorted(tmp_path.glob("*.tar"))
        for member in scan(path)
    }
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


def test_oversized_members_are_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(
        tmp_path, {"1": {"txt": b"1" * (3 << 20)}, "2": {"txt": b"2"}, "3": {"mp4": bytes(3 << 20)}}
    )
    reads: list[int] = []
    read = shard_reader.HashingReader.read
    monkeypatch.setattr(
        shard_reader.HashingReader,
        "read",
        lambda self, size: reads.append(size) or read(self, size),
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
    monkeypatch.setattr(index_writer, "MAX_FIELDS", 3)
    write_shards(tmp_path, {str(n): {f"f{n}.png": picture(1, 1)} for n in range(4)})
    with pytest.raises(
        UserError,
        match=r"shard-000001.tar: field 'f3.png' is one of more than 3; .*--key-dots last",
    ):
        build_index(tmp_path, MediaConfig(), progress=False)


def test_no_usable_sample(tmp_path: Path) -> None:
    write_shards(tmp_path, {"1": {"png": b""}})
    with pytest.raises(
        UserError, match=r"no usable sample; 1 broken members are listed in .*problems\.jsonl"
    ):
        build_index(tmp_path, MediaConfig(), progress=False)


# -- building it
# -----------------------------------------------------------------------------------------


def test_a_new_index_replaces_the_old_and_readers_keep_theirs(
    folder: Path, manifest: Manifest
) -> None:
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
    with pytest.raises(UserError, match=r"no \.tar shards; make some"):
        build_index(tmp_path, MediaConfig(), progress=False)


def test_compressed_shards_are_refused_with_the_command_also_beside_plain_ones(
    folder: Path,
) -> None:
    plain = next(folder.glob("*.tar"))
    (folder / "more.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(
        UserError,
        match=r"more\.tar\.gz.*a gzip-compressed archive.*run: gzip -dc < \S+more\.tar\.gz",
    ):
        build_index(folder, MediaConfig(), progress=False)
    (folder / "more.tar.gz").write_bytes(plain.read_bytes())
    with pytest.raises(
        UserError, match=r"more\.tar\.gz: not compressed, against its name; rename it to \.tar"
    ):
        build_index(folder, MediaConfig(), progress=False)


# -- verify
# ----------------------------------------------------------------------------------------------


def test_verify_finds_nothing_in_sound_shards(folder: Path, manifest: Manifest) -> None:
    assert verify_shards(folder) == []


def test_verify_names_shard_and_key_of_a_flipped_bit(folder: Path, manifest: Manifest) -> None:
    facts = manifest.column("wav")[3]
    shard = shard_path(manifest, 1)
    raw = bytearray(shard.read_bytes())
    raw[int(facts["offset"]) + 50] ^= 1
    shard.write_bytes(raw)
    faults = verify_shards(folder)
    assert faults == [
        f"{shard}: byte {facts['offset']}: sample 'd': wav: differs from the index",
        f"{shard}: SHA-256 differs from the index",
    ]


def test_verify_sees_a_flip_outside_of_payloads(folder: Path, manifest: Manifest) -> None:
    shard = shard_path(manifest, 2)
    raw = bytearray(shard.read_bytes())
    raw[int(manifest.column("png")[4]["offset"] + manifest.column("png")[4]["size"])] ^= (
        1  # padding
    )
    shard.write_bytes(raw)
    assert verify_shards(folder) == [f"{shard}: SHA-256 differs from the index"]


def test_verify_names_missing_cut_and_added_shards(folder: Path, manifest: Manifest) -> None:
    first, second, third = (folder / name for name in manifest.shards)
    (folder / "z.tar").write_bytes(third.read_bytes())
    third.unlink()
    second.write_bytes(second.read_bytes()[:1000])
    faults = verify_shards(folder)
    assert [fault.split(": ")[0] for fault in faults] == [
        f"{folder / 'z.tar'}",
        f"{second}",
        f"{second}",
        f"{third}",
    ]
    assert (
        "not in the index" in faults[0] and "1000 bytes, but" in faults[1] and "byte " in faults[2]
    )
    assert not any(str(first) in fault for fault in faults)


def test_verify_sees_damage_of_the_index_itself(folder: Path, manifest: Manifest) -> None:
    path = folder / "index" / "field.txt.npy"
    column = np.load(path)
    column["crc"][0] ^= 1
    np.save(path, column)
    assert [fault.split(": ", 2)[2] for fault in verify_shards(folder)] == [
        "sample 'a': txt: differs from the index"
    ]
