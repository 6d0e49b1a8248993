"""Hugging Face's imagefolder and audiofolder with metadata, compared with what `datasets` gives."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from indexed import picture, sound
from packed_sets import account_of, packed

from mmscale.data.ingest.pack import pack
from mmscale.errors import UserError

Rows = list[dict[str, Any]]


def write_metadata(folder: Path, rows: Rows, kind: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"metadata.{kind}"
    if kind == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


def photos(folder: Path, count: int, first: int = 1) -> Rows:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(first, first + count):
        (folder / f"{number}.png").write_bytes(picture(number, 2))
        rows.append({"file_name": f"{number}.png", "text": f"photo {number}"})
    return rows


def as_datasets(builder: str, source: Path, cache: Path) -> dict[str, Rows]:
    """The rows of each split, media as bytes, by the library itself."""
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(builder, data_dir=str(source), cache_dir=str(cache))
    found = {}
    for split, rows in loaded.items():
        for name, feature in rows.features.items():
            if isinstance(feature, datasets.Image | datasets.Audio):
                rows = rows.cast_column(name, type(feature)(decode=False))
        found[split] = [
            {
                name: Path(value["path"]).read_bytes() if isinstance(value, dict) else value
                for name, value in row.items()
            }
            for row in rows
        ]
    return found


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_splits_as_the_library_reads_them(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "photos"
    for split, first in (("train", 1), ("test", 10)):
        write_metadata(source / split, photos(source / split, 3, first), kind)
    sets = packed(source, tmp_path / "out")
    assert sets["test"]["10"] == {"png": picture(10, 2), "txt": b"photo 10"}
    expected = as_datasets("imagefolder", source, tmp_path / "cache")
    assert {
        split: sorted((fields["png"], fields["txt"].decode()) for fields in samples.values())
        for split, samples in sets.items()
    } == {
        split: sorted((row["image"], row["text"]) for row in rows)
        for split, rows in expected.items()
    }


def test_one_metadata_file_for_all_splits(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    rows = []
    for split, first in (("train", 1), ("validation", 10)):
        for row in photos(source / split, 2, first):
            rows.append({**row, "file_name": f"{split}/{row['file_name']}"})
    write_metadata(source, rows, "csv")
    sets = packed(source, tmp_path / "out")
    assert {split: sorted(samples) for split, samples in sets.items()} == {
        "train": ["1", "2"],
        "validation": ["10", "11"],
    }
    assert {row["text"] for row in rows} == {
        fields["txt"].decode() for samples in sets.values() for fields in samples.values()
    }


def test_audiofolder(tmp_path: Path) -> None:
    source = tmp_path / "clips"
    (source / "data").mkdir(parents=True)
    for number in (1, 2):
        (source / "data" / f"{number}.wav").write_bytes(sound(100 * number, 8000))
    rows = [
        {"file_name": f"data/{number}.wav", "transcription": f"word {number}", "speaker": number}
        for number in (1, 2)
    ]
    write_metadata(source, rows, "jsonl")
    sets = packed(source, tmp_path / "out", columns={"text": "transcription"})
    assert sets[""]["data/2"] == {
        "wav": sound(200, 8000), "txt": b"word 2", "json": b'{"speaker": 2}',
    }  # fmt: skip
    pytest.importorskip("torchcodec")  # without it the library makes no sounds
    (expected,) = as_datasets("audiofolder", source, tmp_path / "cache").values()
    assert sorted((fields["wav"], fields["txt"].decode()) for fields in sets[""].values()) == (
        sorted((row["audio"], row["transcription"]) for row in expected)
    )


def test_files_of_other_columns_and_lists(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    photos(source / "train", 4)
    rows = [
        {
            "file_name": "1.png",
            "Mask_file_name": "2.png",
            "frames_file_names": ["3.png", "4.png"],
            "text": ["one", "two"],
        }
    ]
    write_metadata(source / "train", rows, "jsonl")
    assert packed(source, tmp_path / "out")["train"]["1"] == {
        "png": picture(1, 2),
        "mask.png": picture(2, 2),
        "frames.0.png": picture(3, 2),
        "frames.1.png": picture(4, 2),
        "0.txt": b"one",
        "1.txt": b"two",
    }
    write_metadata(source / "train", [{"file_names": ["1.png", "2.png"]}], "jsonl")
    packs = packed(source, tmp_path / "lists")["train"]
    assert packs == {"1": {"0.png": picture(1, 2), "1.png": picture(2, 2)}}


def test_several_rows_of_one_file_are_samples_each(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    (row,) = photos(source, 1)
    write_metadata(source, [row, {**row, "text": "again"}], "csv")
    sets = packed(source, tmp_path / "out")
    assert {key: fields["txt"] for key, fields in sets[""].items()} == {
        "1": b"photo 1",
        "1-2": b"again",
    }


def test_what_no_row_names_is_told(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    write_metadata(source, photos(source, 3)[:1], "csv")
    (source / "notes.md").write_text("x")
    told = account_of(source, tmp_path / "out")
    assert "2 media files that no metadata names, which are left out (2.png, 3.png)" in told
    assert "1 files with endings that are not read (notes.md)" in told
    with pytest.raises(UserError, match=r"--strict: 2 media files that no metadata names"):
        pack(source, tmp_path / "out", strict=True, progress=False)


def test_bad_metadata_is_named(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    photos(source / "train", 1)
    photos(source, 1)
    for rows, words in (
        ([{"name": "1.png"}], r"metadata\.csv: no column file_name"),
        ([{"file_name": "9.png"}], r"metadata\.csv: row 1: image '9\.png': no such file"),
        ([{"file_name": "../x.png"}], r"row 1: image '\.\./x\.png': lies outside"),
        (
            [{"file_name": "1.png"}, {"file_name": "train/1.png"}],
            r"row 1: its file lies in the folder of no split",
        ),
    ):
        (tmp_path / "x.png").write_bytes(picture(1, 1))
        write_metadata(source, rows, "csv")
        with pytest.raises(UserError, match=words):
            packed(source, tmp_path / "out")
