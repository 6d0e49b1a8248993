"""Shards as other programs write them: what the index holds is what the webdataset library
reads.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image
from tars import FORMATS, member, read_with_webdataset, write_tar

from mmscale.config import MediaConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.index.dataset import Dataset
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.tar_headers import scan
from mmscale.errors import UserError


def picture(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (1, 2, 3)).save(buffer, kind)
    return buffer.getvalue()


def clip() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(80, np.float32), 8000, format="WAV")
    return buffer.getvalue()


PNG, JPG, WAV = picture(), picture("JPEG"), clip()
# Every kind of good sample at once. Keys stand together, as all of webdataset's writers leave them.
SAMPLES = {
    "0001.png": PNG,
    "0001.txt": b"",
    "0002.JPG": JPG,
    "0002.TXT": b"upper case endings",
    "0003.seg.png": PNG,
    "0003.depth.16.png": PNG,
    "0003.json": b'{"label": "cat"}',
    "0004.0.jpg": JPG,
    "0004.1.jpg": JPG,
    "0004.caption.0.txt": b"one",
    "0004.caption.1.txt": b"two",
    "0005.npy": b"an ending that nothing here reads",
    "0005.cls": b"7",
    "0006.wav": WAV,
    "a.b/c d/0007.wav": WAV,
    "a.b/c d/0007.txt": b"dots and spaces in folders",
    "a.b/0001.png": PNG,
    "./0008.png": PNG,
    "-0009.txt": b"a name like an option",
}
NOT_ASCII = {"图片/数字.png": PNG, "图片/数字.txt": "数字".encode(), "naïve/Ärger.cls": b"1"}
LONG = {"n" * 120 + ".txt": b"beyond 100", "d" * 200 + "/" + "n" * 200 + ".txt": b"beyond 255"}


def indexed(folder: Path) -> dict[str, dict[str, bytes]]:
    """Fields by key: every field of the index, read by its byte range from the shard."""
    manifest = build_index(folder, MediaConfig(), progress=False)
    assert list(manifest.problems()) == []
    samples: dict[str, dict[str, bytes]] = {manifest.key(i): {} for i in range(len(manifest))}
    for field in manifest.fields:
        facts = manifest.column(field)
        for i in np.flatnonzero(facts["offset"]).tolist():
            raw = (manifest.root / manifest.shards[manifest.shard_of(i)]).read_bytes()
            offset, size = int(facts["offset"][i]), int(facts["size"][i])
            samples[manifest.key(i)][field] = raw[offset : offset + size]
    return samples


@pytest.mark.parametrize("format", FORMATS)
def test_python_tarfile(tmp_path: Path, format: str) -> None:
    members = (
        SAMPLES | (NOT_ASCII if format != "ustar" else {}) | (LONG if format != "ustar" else {})
    )
    path = write_tar(tmp_path / "s.tar", members, FORMATS[format])
    expected = read_with_webdataset(path)
    assert sum(len(fields) for fields in expected.values()) == len(members)
    assert indexed(tmp_path) == expected


@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_tar_program_with_directories(tmp_path: Path, format: str) -> None:
    program = shutil.which("tar")
    if (
        program is None
        or b"GNU tar" not in subprocess.run([program, "--version"], capture_output=True).stdout
    ):
        pytest.skip("GNU tar is not installed")
    members = {name.removeprefix("./").lstrip("-"): data for name, data in SAMPLES.items()}
    if format in ("oldgnu", "gnu", "posix"):
        members |= LONG
    if format != "v7":
        members |= NOT_ASCII
    for name, data in members.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(data)
    (tmp_path / "shards").mkdir()
    path = tmp_path / "shards" / "s.tar"
    subprocess.run(
        [program, f"--format={format}", "--sort=name", "-C", tmp_path / "tree", "-cf", path, "."],
        check=True,
    )
    with tarfile.open(path) as archive:
        assert any(entry.isdir() for entry in archive)
    expected = read_with_webdataset(path)
    assert sum(len(fields) for fields in expected.values()) == len(members)
    assert indexed(tmp_path / "shards") == expected


def test_v7_header_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(
        member(b"1.png", PNG, kind=b"\0", magic=b"")
        + member(b"1.txt", b"one", kind=b"\0", magic=b"")
        + bytes(1024)
    )
    assert indexed(tmp_path) == read_with_webdataset(path) == {"1": {"png": PNG, "txt": b"one"}}


def test_webdatasets_own_writer(tmp_path: Path) -> None:
    import webdataset

    path = tmp_path / "s.tar"
    with webdataset.TarWriter(str(path)) as writer:
        writer.write({"__key__": "a", "png": PNG, "txt": "text", "json": {"n": 1}})
        writer.write({"__key__": "b/c", "0.jpg": JPG, "cls": 3})
    assert indexed(tmp_path) == read_with_webdataset(path)


def test_missing_modalities_and_empty_members(tmp_path: Path) -> None:
    members = {
        "1.png": PNG,
        "1.txt": b"",
        "2.txt": b"alone",
        "3.wav": WAV,
        "4.png": PNG,
        "4.wav": WAV,
    }
    path = write_tar(tmp_path / "s.tar", members)
    assert indexed(tmp_path) == read_with_webdataset(path)
    dataset = Dataset([Manifest.open(tmp_path)])
    numbers = np.arange(len(dataset))
    # A text of no bytes is a text; a member that is not there is none.
    assert (dataset.facts("text", numbers)["offset"] > 0).tolist() == [True, True, False, False]
    assert dataset.text("text", 0) == "" and dataset.text("text", 1) == "alone"
    assert (dataset.facts("image", numbers)["offset"] > 0).tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    "ending",
    ["png", "jpg", "webp", "gif", "bmp", "tif", "wav", "flac", "ogg", "opus", "mp3", "json"],
)
def test_an_empty_medium_leaves_its_sample_out_by_name(tmp_path: Path, ending: str) -> None:
    write_tar(tmp_path / "s.tar", {f"empty.{ending}": b"", "empty.txt": b"one", "good.txt": b"two"})
    manifest = build_index(tmp_path, MediaConfig(), progress=False)
    assert [manifest.key(i) for i in range(len(manifest))] == ["good"]
    (problem,) = manifest.problems()
    assert f"s.tar: byte 512: sample 'empty' left out: {ending}: " in problem


def differs(tmp_path: Path, members: dict[str, bytes]) -> tuple[dict, dict]:
    """What is read here and what webdataset reads, where the two differ on purpose."""
    path = write_tar(tmp_path / "s.tar", members)
    raw = path.read_bytes()
    ours: dict[str, dict[str, bytes]] = {}
    for entry in scan(path):
        ours.setdefault(entry.key, {})[entry.field] = raw[entry.offset : entry.offset + entry.size]
    return ours, read_with_webdataset(path)


def test_hidden_files_are_no_samples(tmp_path: Path) -> None:
    # macOS writes ._1.png beside 1.png; webdataset makes a sample 'cats/' of all of them.
    ours, theirs = differs(tmp_path, {"cats/._1.png": b"resource fork", "cats/1.png": PNG})
    assert ours == {"cats/1": {"png": PNG}}
    assert set(theirs) == {"cats/", "cats/1"}


def test_a_name_that_ends_in_a_dot_is_no_field(tmp_path: Path) -> None:
    ours, theirs = differs(tmp_path, {"1.png": PNG, "1.": b"what is this"})
    assert ours == {"1": {"png": PNG}} and set(theirs["1"]) == {"png", ""}


def test_what_webdataset_would_silently_split_or_stop_at_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"1.png": PNG, "2.png": PNG, "1.txt": b"late"})
    with pytest.raises(UserError, match="key '1' appears again"):
        list(scan(path))
    theirs = [sample["__key__"] for sample in _samples(path)]
    assert theirs == ["1", "2", "1"]  # two halves, neither of which is the sample

    path.write_bytes(member(b"1.txt", b"one") + member(b"2.txt", b"two"))  # cut where a member ends
    with pytest.raises(UserError, match="end marker"):
        list(scan(path))
    assert len(_samples(path)) == 2

    whole = write_tar(path, {"1.txt": b"one"}).read_bytes()
    path.write_bytes(whole + write_tar(path, {"2.txt": b"two"}).read_bytes())  # cat a.tar b.tar
    with pytest.raises(UserError, match="data after the end marker"):
        list(scan(path))
    assert [sample["__key__"] for sample in _samples(path)] == ["1"]


def _samples(path: Path) -> list[dict]:
    import webdataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(webdataset.WebDataset(str(path), shardshuffle=False))
