"""Tables of any delimiter and form; columns, splits and files elsewhere by options."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from indexed import picture, sound
from packed_sets import account_of, labels, packed

from mmscale.data.ingest.pack import pack
from mmscale.errors import UserError

ROWS = [
    {"image": "1.png", "text": 'a "cat", or; two', "label": "cat"},
    {"image": "2.png", "text": "a\tdog | three", "label": "dog"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"{number}.png").write_bytes(picture(number, 1))
    return folder


def write_csv(path: Path, rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("name", "delimiter", "told"),
    [
        ("t.csv", ",", ""),
        ("t.csv", ";", "divided by semicolons; --delimiter decides"),
        ("t.csv", "\t", "divided by tabs"),
        ("t.csv", "|", "divided by '|'"),
        ("t.tsv", "\t", ""),
        ("t.tsv", ",", "divided by commas"),
    ],
)
def test_delimiters_are_found_and_told(
    folder: Path, tmp_path: Path, name: str, delimiter: str, told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sets = packed(write_csv(folder / name, ROWS, delimiter), tmp_path / "out")
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert sets == packed(folder / "t.jsonl", tmp_path / "json")
    error = capsys.readouterr().err
    assert told in error and (told or not error)


def test_the_option_decides_the_delimiter(folder: Path, tmp_path: Path) -> None:
    (folder / "t.csv").write_text("text~label\na,b~c,d\n")
    sets = packed(folder / "t.csv", tmp_path / "out", delimiter="~")
    assert sets[""] == {"00000001": {"txt": b"a,b", "json": b'{"label": "c,d"}'}}


def test_a_header_of_one_column_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "t.csv").write_text("text~label\na~b\n")
    assert "1 tables with a header of one column (t.csv: 'text~label'); if it has several" in (
        account_of(folder / "t.csv", tmp_path / "out")
    )
    with pytest.raises(UserError, match=r"--strict: .*header of one column"):
        pack(folder / "t.csv", tmp_path / "out", strict=True, progress=False)


def test_a_json_array_is_its_lines(folder: Path, tmp_path: Path) -> None:
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "a.json").write_text("\ufeff" + json.dumps(ROWS, indent=1))
    (folder / "l.json").write_text((folder / "t.jsonl").read_text())
    sets = [packed(folder / name, tmp_path / name) for name in ("t.jsonl", "a.json", "l.json")]
    assert sets[0] == sets[1] == sets[2] and len(sets[0][""]) == 2
    for text, words in (
        ("{", "row 1: not JSON"),
        ("3", "not an array"),
        ("[3]", "row 1: not an o"),
    ):
        (folder / "a.json").write_text(text)
        with pytest.raises(UserError, match=rf"a\.json: {words}"):
            packed(folder / "a.json", tmp_path / "out")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns_under_other_names(folder: Path, tmp_path: Path, kind: str) -> None:
    (folder / "1.wav").write_bytes(sound(10, 8000))
    row = {"photo": "1.png", "clip": "1.wav", "sentence": "hi", "class": "cat", "text": "old"}
    table = folder / f"t.{kind}"
    if kind == "csv":
        write_csv(table, [row])
    elif kind == "jsonl":
        table.write_text(json.dumps(row))
    else:
        pq.write_table(pa.table({name: [value] for name, value in row.items()}), table)
    told = account_of(table, tmp_path / "out")
    assert "2 columns that name files that exist" in told and "photo: '1.png'" in told
    columns = {"image": "photo", "audio": "clip", "text": "sentence", "label": "class"}
    sets = packed(table, tmp_path / "out", columns=columns)
    assert sets[""] == {
        "00000001": {
            "png": picture(1, 1),
            "wav": sound(10, 8000),
            "txt": b"hi",
            "json": b'{"label": "cat"}',
        }
    }
    told = account_of(table, tmp_path / "out", columns=columns)
    assert told == (
        f"1 columns left out, as an option gives their name to another column ({table.name}: text);"
        " rename them to keep them"
    )
    with pytest.raises(UserError, match="no column 'picture' for --image; it has photo, clip"):
        packed(table, tmp_path / "none", columns={"image": "picture"})


def test_media_bytes_under_another_name_are_told_with_the_option(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"thumb": [picture(2, 2)], "text": ["a"]}), table)
    told = account_of(table, tmp_path / "out")
    assert (
        "1 columns that hold media and are left out (t.parquet: thumb); --image COL or --audio"
        in told
    )
    assert packed(table, tmp_path / "out")[""] == {"00000001": {"txt": b"a"}}
    sets = packed(table, tmp_path / "taken", columns={"image": "thumb"})
    assert sets[""]["00000001"] == {"png": picture(2, 2), "txt": b"a"}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_column_split_makes_sets(tmp_path: Path, kind: str) -> None:
    rows = [
        {"key": f"k{n}", "text": f"text {n}", "split": split}
        for n, split in enumerate(["train", "test", "train", "dev", "train"])
    ]
    table = tmp_path / f"t.{kind}"
    if kind == "csv":
        write_csv(table, rows)
    else:
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        pq.write_table(pa.table(columns), table, row_group_size=2)
    sets = packed(table, tmp_path / "out")
    assert {name: sorted(samples) for name, samples in sets.items()} == {
        "train": ["k0", "k2", "k4"],
        "test": ["k1"],
        "dev": ["k3"],
    }
    assert sets["dev"] == {"k3": {"txt": b"text 3"}}
    merged = packed(table, tmp_path / "merged", merge_splits=True)[""]
    assert merged.keys() == {"train/k0", "test/k1", "train/k2", "dev/k3", "train/k4"}
    assert merged["train/k4"] == {"txt": b"text 4"}
    assert packed(table, tmp_path / "one", split="dev")[""] == sets["dev"]


def test_rows_without_a_split_and_bad_names_are_refused(tmp_path: Path) -> None:
    for text, words in (
        ("text,split\na,train\nb,\n", "row 2: the column split is empty"),
        ("text,split\na,../up\n", r"the split '\.\./up' cannot be the name of a folder"),
        ("text,split\na,index\n", "the split 'index' cannot be"),
        ("text,split\na,Test\nb,test\n", "two splits are called 'Test' and 'test'"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(UserError, match=words):
            packed(tmp_path / "t.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parquet_files_named_by_splits_are_sets(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number, name in enumerate(["train-00000-of-00002", "train-00001-of-00002", "test"]):
        pq.write_table(pa.table({"text": [f"{number}"]}), folder / f"{name}.parquet")
    sets = packed(folder, tmp_path / "out")
    assert sets == {
        "train": {
            "train-00000-of-00002/00000001": {"txt": b"0"},
            "train-00001-of-00002/00000001": {"txt": b"1"},
        },
        "test": {"test/00000001": {"txt": b"2"}},
    }
    pq.write_table(pa.table({"text": ["x"]}), folder / "extra.parquet")
    with pytest.raises(UserError, match=r"extra\.parquet: of no split, beside test, train"):
        packed(folder, tmp_path / "out")


def test_files_elsewhere_lie_in_the_root(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "lists" / "t.csv"
    table.parent.mkdir()
    table.write_text(f"image\n{folder / '1.png'}\n2.png\n")
    with pytest.raises(UserError, match=r"lies outside .*name the folder it lies in with --root"):
        packed(table, tmp_path / "out")
    sets = packed(table, tmp_path / "out", root=folder)
    assert sets[""] == {"00000001": {"png": picture(1, 1)}, "00000002": {"png": picture(2, 1)}}
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "secret.png").write_bytes(picture(1, 1))
    table.write_text("image\nout.png\n")
    with pytest.raises(UserError, match="lies outside"):
        packed(table, tmp_path / "again", root=folder)


def test_labels_that_are_hardly_meant_are_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\na,cat\nb,\nc,nan\nd,None\ne,7\nf,\ufeff0\n")
    told = account_of(tmp_path / "t.csv", tmp_path / "out").splitlines()
    assert told[0].startswith(
        r"3 classes that are hardly meant as such ('nan', 'None', '\ufeff0');"
    )
    assert told[1].startswith("1 classes that look like numbers ('7');")
    assert "1 rows without a label, beside others that have one" in told[2] and "row 2" in told[2]
    pq.write_table(
        pa.table({"text": list("abc"), "label": ["cat", None, "nan"]}), tmp_path / "t.parquet"
    )
    told = account_of(tmp_path / "t.parquet", tmp_path / "out")
    assert "1 classes that are hardly meant as such ('nan')" in told and "row 2" in told
    assert labels(packed(tmp_path / "t.parquet", tmp_path / "out")[""]) == {
        "00000001": "cat", "00000002": None, "00000003": "nan",
    }  # fmt: skip
