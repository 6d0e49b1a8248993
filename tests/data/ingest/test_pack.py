"""Packing: bytes untouched, deterministic, shuffled, nothing half-written, bad rows named."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from pathlib import Path

import pytest
from indexed import picture, sound
from packed_sets import read_shards as read_all

from mmscale.config import MediaConfig
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.tar_headers import scan
from mmscale.data.ingest.pack import ShardWriter, pack
from mmscale.data.ingest.pack_state import PackState
from mmscale.errors import UserError


def checksums(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*.tar"))
    }


def quietly(source: Path, out: Path, **options) -> Manifest:
    (manifest,) = pack(source, out, progress=False, **options).values()
    return manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for label in ("cat", "dog"):
        (root / label / "deep").mkdir(parents=True)
        for number in range(4):
            (root / label / f"{number}.PNG").write_bytes(picture(number + 1, 2))
    (root / "cat" / "0.txt").write_text("a cat", encoding="utf-8")
    (root / "cat" / "1.json").write_text('{"label": "tiger"}', encoding="utf-8")
    (root / "dog" / "deep" / "v1.2.wav").write_bytes(sound(10, 8000))
    (root / "top.jpg").write_bytes(picture(3, 3, "JPEG"))
    (root / "notes.md").write_text("not a sample")
    (root / "about.json").write_text("{}")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.png").write_bytes(b"")
    return root


def write_table(folder: Path, text: str, name: str = "table.csv") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "1.png").write_bytes(picture(1, 1))
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "2.flac").write_bytes(sound(100, 8000, "FLAC"))
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


# -- ShardWriter
# -----------------------------------------------------------------------------------------


def test_writer_splits_by_samples(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, prefix="p", samples_per_shard=2) as writer:
        for number in range(5):
            writer.write(f"k{number}", {"txt": b"%d" % number, "cls": b"0"})
    assert [path.name for path in writer.paths] == ["p-000000.tar", "p-000001.tar", "p-000002.tar"]
    assert [[member.key for member in scan(path)][::2] for path in writer.paths] == [
        ["k0", "k1"],
        ["k2", "k3"],
        ["k4"],
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in writer.paths]


def test_writer_splits_by_bytes(tmp_path: Path) -> None:
    limit = 10 * 512
    with ShardWriter(tmp_path, max_shard_bytes=limit) as writer:
        for number, size in enumerate([512] * 9 + [limit]):
            writer.write(str(number), {"bin": bytes(size)})
    counts = [len(list(scan(path))) for path in writer.paths]
    assert counts == [
        4,
        4,
        1,
        1,
    ]  # two blocks a sample and two at the end; the last is over the limit alone


def test_shards_hold_nothing_of_this_machine(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with ShardWriter(tmp_path / name) as writer:
            writer.write("k", {"txt": b"1"})
        os.utime(tmp_path / name, (1, 1))
    assert checksums(tmp_path / "one") == checksums(tmp_path / "two")
    with tarfile.open(tmp_path / "one" / "shard-000000.tar") as archive:
        (info,) = archive.getmembers()
    assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (
        0,
        0,
        0,
        "",
        "",
        0o644,
    )


def test_pax_headers_only_where_needed(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, samples_per_shard=1) as writer:
        for key in ("plain", "数字", "d/" * 30 + "n" * 90):
            writer.write(key, {"txt": b"1"})
    headers = []
    for path in writer.paths:
        with tarfile.open(path) as archive:
            headers.append(sorted(archive.getmembers()[0].pax_headers))
    assert headers == [[], ["path"], ["path"]]
    assert [next(scan(path)).key for path in writer.paths] == [
        "plain",
        "数字",
        "d/" * 30 + "n" * 90,
    ]


def test_a_failed_writer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, samples_per_shard=1) as writer:
        writer.write("1", {"txt": b"1"})
        writer.write("2", {"txt": b"2"})
        assert (tmp_path / "shard-000000.tar").exists() and not (
            tmp_path / "shard-000001.tar"
        ).exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "key",
    [
        "",
        "a.b",
        ".hidden",
        "/abs",
        "../up",
        "a/../b",
        "new\nline",
        "folder/",
        "__meta__/1",
        "x" * 5000,
        "\ud800",
    ],
)
def test_writer_refuses_keys_that_readers_would_not_give_back(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=r"^key "), ShardWriter(tmp_path) as writer:
        writer.write(key, {"txt": b"1"})


@pytest.mark.parametrize("field", ["", "PNG", "a/b", "png copy", "x" * 65])
def test_writer_refuses_field_names(tmp_path: Path, field: str) -> None:
    with pytest.raises(UserError, match="field"), ShardWriter(tmp_path) as writer:
        writer.write("k", {field: b"1"})


def test_writer_refuses_duplicates_and_existing_shards(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"shard-000000\.tar: key 'k' is written twice"),
        ShardWriter(tmp_path) as writer,
    ):
        writer.write("k", {"txt": b"1"})
        writer.write("k", {"cls": b"1"})
    (tmp_path / "shard-000000.tar").write_bytes(b"mine")
    with (
        pytest.raises(UserError, match=r"shard-000000\.tar: exists already"),
        ShardWriter(tmp_path) as writer,
    ):
        writer.write("k", {"txt": b"1"})
    assert (tmp_path / "shard-000000.tar").read_bytes() == b"mine"


# -- folders
# ---------------------------------------------------------------------------------------------


def test_pack_folder(folder: Path, tmp_path: Path) -> None:
    manifest = quietly(folder, tmp_path / "out", samples_per_shard=4)
    samples = read_all(tmp_path / "out")
    assert (
        len(manifest) == len(samples) == 10
        and len(manifest.shards) == 3
        and manifest.problem_count == 0
    )
    assert samples["cat/0"]["png"] == (folder / "cat" / "0.PNG").read_bytes()  # bytes untouched
    assert samples["cat/0"]["txt"] == b"a cat"
    assert json.loads(samples["cat/0"]["json"]) == {"label": "cat"}
    assert json.loads(samples["cat/1"]["json"]) == {"label": "tiger"}  # its own json wins
    assert json.loads(samples["dog/deep/v1_2"]["json"]) == {"label": "dog"}
    assert set(samples["top"]) == {"jpg"}  # no sub-folder, no label


def test_pack_is_shuffled_by_seed_and_repeatable(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        quietly(folder, tmp_path / name, shuffle_seed=seed)
    orders = {name: list(read_all(tmp_path / name)) for name in "abc"}
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b")
    assert orders["a"] != orders["c"] and sorted(orders["a"]) == sorted(orders["c"])
    labels = [key.split("/")[0] for key in orders["a"]]
    assert labels != sorted(labels)  # classes are mixed


def test_out_inside_the_source_is_not_packed_again(folder: Path) -> None:
    (folder / "shards").mkdir()
    (folder / "shards" / "old.png").write_bytes(picture(1, 1))
    assert len(quietly(folder, folder / "shards")) == 10


def test_folder_faults_name_the_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (folder / "cat" / "0.png").write_bytes(picture(1, 1))
    with pytest.raises(UserError, match=r"0\.png: its sample has '0\.PNG' too"):
        quietly(folder, out)
    (folder / "cat" / "0.png").unlink()
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "cat" / "2.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UserError, match=r"2\.txt: lies outside"):
        quietly(folder, out)
    (folder / "cat" / "2.txt").unlink()
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(
        UserError, match=r"/linked: a link to a folder, which is not followed; copy"
    ):
        quietly(folder, out)
    (folder / "linked").unlink()
    with pytest.raises(UserError, match=r"bytes are over media\.max_file_bytes=9"):
        quietly(folder, out, media=MediaConfig(max_file_bytes=9))
    (folder / "cat" / "a.b.png").write_bytes(picture(1, 1))
    (folder / "cat" / "a_b.png").write_bytes(picture(1, 1))
    with pytest.raises(UserError, match=r"a_b: key 'cat/a_b' is also that of .*a\.b"):
        quietly(folder, out)
    assert not out.exists()


def test_a_folder_that_cannot_be_read_is_not_passed_over(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        UserError, match=r"cat/deep: cannot be read \(Permission denied\); check its rights"
    ):
        quietly(folder, tmp_path / "out")


def test_nothing_to_pack(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.xlsx").write_bytes(b"")
    for name, words in (
        ("empty", "holds no samples"),
        ("x.xlsx", "not a kind of source"),
        ("no", "no such folder"),
    ):
        with pytest.raises(UserError, match=f"{tmp_path / name}: {words}"):
            quietly(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("existing", ["other.tar", "index/manifest.json"])
def test_out_that_holds_shards_is_left_alone(folder: Path, tmp_path: Path, existing: str) -> None:
    path = tmp_path / "out" / existing
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(
        UserError, match=f"{tmp_path / 'out'}: already holds .*; name an empty folder"
    ):
        quietly(folder, tmp_path / "out")
    assert [entry for entry in (tmp_path / "out").rglob("*") if entry.is_file()] == [path]


# -- tables
# ----------------------------------------------------------------------------------------------

CSV = """key,image,audio,text,cls,speaker,note
first,1.png,sub/2.flac,"hello, ""you"" 你",3,bob,
second,,sub/2.flac,,,amy,"two
lines"
"""


def test_pack_csv(tmp_path: Path) -> None:
    table = write_table(tmp_path / "src", CSV)
    manifest = quietly(table, tmp_path / "out")
    samples = read_all(tmp_path / "out")
    assert len(manifest) == 2 and set(samples) == {"first", "second"}
    assert samples["first"] == {
        "png": (tmp_path / "src" / "1.png").read_bytes(),
        "flac": (tmp_path / "src" / "sub" / "2.flac").read_bytes(),
        "txt": 'hello, "you" 你'.encode(),
        "cls": b"3",
        "json": b'{"speaker": "bob"}',  # an empty cell is no value
    }
    assert json.loads(samples["second"]["json"]) == {"speaker": "amy", "note": "two\nlines"}
    assert set(samples["second"]) == {"flac", "json"}


def test_pack_jsonl(tmp_path: Path) -> None:
    rows = [
        {"image": "1.png", "text": "一", "cls": 7, "tags": ["x"], "score": 0.5},
        {"text": "only text", "image": None},
    ]
    table = write_table(
        tmp_path / "src", "\n\n".join(json.dumps(row) for row in rows) + "\n", "t.jsonl"
    )
    quietly(table, tmp_path / "out")
    samples = read_all(tmp_path / "out")
    assert set(samples) == {"00000001", "00000003"}  # by line
    assert samples["00000001"]["cls"] == b"7" and samples["00000001"]["txt"] == "一".encode()
    assert json.loads(samples["00000001"]["json"]) == {"tags": ["x"], "score": 0.5}
    assert samples["00000003"] == {"txt": b"only text"}


def test_paths_inside_may_be_absolute(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    table = write_table(folder, f"image\n{folder / '1.png'}\nsub/../1.png\n")
    assert len(quietly(table, tmp_path / "out")) == 2


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("missing.png,,", r"image 'missing\.png': no such file"),
        ("../secret.png,,", r"image '\.\./secret\.png': lies outside"),
        ("/etc/hostname.png,,", "no such file"),
        ("{root}/secret.png,,", "lies outside"),
        ("link.png,,", "lies outside"),
        ("folder.png,,", "not a plain file"),
        ("table.csv,,", "does not end in png, jpg"),
        ("1.png,same,", "key 'same' is also that of .*row 1"),
        ("1.png,dot.ted,", "readers would not give it back"),
        ("1.png,../up,", "points outside"),
        ("1.png", "1 cells, but the header names 3"),
        ("1.png,a,b,c", "4 cells, but the header names 3"),
        (",,", "empty; remove the row"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: str, words: str) -> None:
    folder = tmp_path / "src"
    row = row.replace("{root}", str(tmp_path))
    table = write_table(folder, f"image,key,other\n1.png,same,x\n{row}\n")
    (tmp_path / "secret.png").write_bytes(picture(1, 1))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "folder.png").mkdir()
    with pytest.raises(UserError, match=rf"{table}: row 2: .*{words}") as caught:
        quietly(table, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("out/*.tar"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "row 2: not JSON"),
        (b"[1]", "row 2: not an object"),
        (b'{"text": "\xff"}', "row 2: not JSON"),
        (b"[" * 5000, "row 2: not JSON"),
        (b'{"text": [["a"]]}', "row 2: text 1 of 1 is"),
        (b'{"text": ["a", ""]}', "row 2: text 2 of 2 is empty"),
        (b'{"text": {"a": 1}}', "row 2: text is"),
        (b'{"cls": ["a"]}', "row 2: cls is"),
        (b'{"image": {"url": "x"}}', "row 2: image has the part url"),
        (b'{"image": ["a.png"]}', r"row 2: image 1 of 1 'a\.png': no such file"),
        (b'{"image": [null]}', "row 2: image 1 of 1 is empty"),
        (b'{"text": "a", "x": {"y": [Infinity]}}', "row 2: column 'x' is infinite"),
        (
            b'{"text": "a", "x": ' + b"[" * 700 + b"]" * 700 + b"}",
            "row 2: column 'x': nested too deep",
        ),
        (b'{"image": true}', "row 2: image is true; write a string"),
        (b'{"text": "\\ud800"}', "row 2: holds half of a surrogate pair"),
        (b'{"image": "a\\u0000.png"}', "row 2: image .*no such file"),
        (b'{"key": "k"}', "row 2: nothing but a key"),
        (b'{"text": "' + b"x" * 6000 + b'"}', "row 2: over media.max_file_bytes=6000"),
    ],
)
def test_bad_json_lines_are_named(tmp_path: Path, line: bytes, words: str) -> None:
    table = tmp_path / "t.jsonl"
    table.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(UserError, match=f"{table}: {words}"):
        quietly(table, tmp_path / "out", media=MediaConfig(max_file_bytes=6000))


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"text\n\xff\n", "not UTF-8"),
        (b"text,text\na,b\n", "the header needs a different name"),
        (b'text\n"open', "line 2: not valid CSV"),
        (b"", "holds no samples"),
    ],
)
def test_bad_csv_is_named(tmp_path: Path, raw: bytes, words: str) -> None:
    (tmp_path / "t.csv").write_bytes(raw)
    with pytest.raises(UserError, match=rf"t\.csv: {words}"):
        quietly(tmp_path / "t.csv", tmp_path / "out")


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    long = "字" * 100_000  # beyond Python's own limit on a cell
    (tmp_path / "t.csv").write_bytes(f"\ufefftext\r\n{long}\r\n\r\n".encode())
    quietly(tmp_path / "t.csv", tmp_path / "out")
    assert read_all(tmp_path / "out") == {"00000001": {"txt": long.encode()}}


@pytest.mark.parametrize("change", ["removed", "grown", "touched"])
def test_a_file_that_changes_while_packing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    table = write_table(tmp_path / "src", "image\n1.png\n")
    file = table.parent / "1.png"
    enter = PackState.__enter__

    def change_then_enter(state: PackState) -> PackState:
        if change == "removed":
            file.unlink()
        elif change == "grown":
            file.write_bytes(file.read_bytes() + b"x")
        else:
            os.utime(file, (1, 1))
        return enter(state)

    monkeypatch.setattr(PackState, "__enter__", change_then_enter)
    words = "cannot be read" if change == "removed" else "changed while it was packed"
    with pytest.raises(UserError, match=rf"{table}: row 1: .*1\.png: {words}"):
        quietly(table, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_lists_become_numbered_fields(tmp_path: Path) -> None:
    row = {
        "image": ["1.png", {"path": "1.png"}],
        "audio": [{"path": "sub/2.flac", "bytes": None}],
        "text": ["one", 2],
        "note": [],
        "nan": float("nan"),
    }
    table = write_table(
        tmp_path / "src", json.dumps(row) + '\n{"image": [], "text": "alone"}', "t.jsonl"
    )
    manifest = quietly(table, tmp_path / "out")
    picture_bytes = (tmp_path / "src" / "1.png").read_bytes()
    samples = read_all(tmp_path / "out")
    assert samples["00000001"] == {
        "0.png": picture_bytes,
        "1.png": picture_bytes,
        "0.flac": (tmp_path / "src" / "sub" / "2.flac").read_bytes(),
        "0.txt": b"one",
        "1.txt": b"2",
        "json": b'{"note": []}',
    }
    assert samples["00000002"] == {"txt": b"alone"}
    assert manifest.problem_count == 0 and manifest.has("image") and manifest.has("audio")
