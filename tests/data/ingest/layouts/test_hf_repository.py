"""Repositories of Hugging Face as `datasets` writes and downloads them: splits, configs, features,
links.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from indexed import picture, sound
from packed_sets import account_of, packed

from mmscale.data.ingest.pack import pack
from mmscale.errors import UserError

MEDIUM = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ["airplane", "bird", "7"]


def write(path: Path, columns: dict[str, list], features: dict[str, Any] | None = None) -> Path:
    """A Parquet file as the library writes it, with its features beside the schema."""
    types = {name: MEDIUM for name, values in columns.items() if isinstance(values[0], dict)}
    table = pa.table({name: pa.array(values, types.get(name)) for name, values in columns.items()})
    if features is not None:
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def cell(width: int) -> dict[str, Any]:
    return {"bytes": picture(width, 2), "path": f"{width}.png"}


FEATURES = {
    "img": {"_type": "Image"},
    "label": {"names": NAMES, "_type": "ClassLabel"},
    "coarse": {"names": ["a", "b"], "_type": "ClassLabel"},
}


def repository(folder: Path) -> Path:
    for split, first in (("train", 1), ("test", 5)):
        columns = {"img": [cell(first), cell(first + 1)], "label": [0, 2], "coarse": [1, -1]}
        write(folder / "data" / f"{split}-00000-of-00001.parquet", columns, FEATURES)
    (folder / "README.md").write_text("# a data set")
    return folder


def test_splits_pictures_and_names_of_classes(tmp_path: Path) -> None:
    sets = packed(repository(tmp_path / "repo"), tmp_path / "out")
    assert sets["train"] == {
        "train-00000-of-00001/00000001": {
            "png": picture(1, 2), "cls": b"0", "json": b'{"label": "airplane", "coarse": "b"}',
        },
        "train-00000-of-00001/00000002": {
            "png": picture(2, 2), "cls": b"2", "json": b'{"label": "7"}',
        },
    }  # fmt: skip
    assert [fields["png"] for fields in sets["test"].values()] in (
        [picture(5, 2), picture(6, 2)],
        [picture(6, 2), picture(5, 2)],
    )
    assert account_of(tmp_path / "repo", tmp_path / "out") == ""


def test_as_the_library_writes_and_reads_them(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "second": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "tags": datasets.List(datasets.ClassLabel(names=["x", "y"])),
            "audio": datasets.Audio(),
        }
    )
    rows = [
        {
            "image": {"bytes": picture(n + 1, 2), "path": None},
            "second": {"bytes": picture(n + 9, 2, "JPEG"), "path": None},
            "label": n % 2,
            "tags": [1, 0],
            "audio": {"bytes": sound(100 + n, 8000), "path": None},
        }
        for n in range(5)
    ]
    # By a cast, which needs no decoder of sounds.
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    stored = datasets.Features({**features, "audio": plain})
    made = datasets.Dataset.from_list(rows, features=stored).cast(features)
    folder = tmp_path / "repo" / "data"
    folder.mkdir(parents=True)
    made.to_parquet(folder / "train-00000-of-00001.parquet")
    read = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path / "repo"), cache_dir=str(tmp_path / "cache")
    )["train"]
    read = read.cast_column("image", datasets.Image(decode=False))
    read = read.cast_column("second", datasets.Image(decode=False))
    read = read.cast_column("audio", datasets.Audio(decode=False))
    sets = packed(tmp_path / "repo", tmp_path / "out")
    assert sets.keys() == {"train"}
    for number, row in enumerate(read):
        fields = sets["train"][f"train-00000-of-00001/{number + 1:08d}"]
        assert fields.keys() == {"png", "second.jpg", "wav", "cls", "json"}
        assert fields["png"] == row["image"]["bytes"]
        assert fields["second.jpg"] == row["second"]["bytes"]
        assert fields["wav"] == row["audio"]["bytes"]
        assert int(fields["cls"]) == row["label"]
        assert json.loads(fields["json"]) == {
            "label": read.features["label"].int2str(row["label"]),
            "tags": read.features["tags"].feature.int2str(row["tags"]),
        }


def test_a_class_beyond_the_names_is_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "t.parquet", {"text": ["a"], "label": [3]}, FEATURES)
    with pytest.raises(UserError, match=r"row 1: column 'label' is 3, but has 3 classes"):
        packed(table, tmp_path / "out")


@pytest.mark.parametrize("by", ["folder", "card"])
def test_one_of_several_configs(tmp_path: Path, by: str) -> None:
    folder = tmp_path / "repo"
    for config in ("en", "de"):
        for split in ("train", "test"):
            name = f"{config}/{split}-00000-of-00001.parquet"
            write(folder / name, {"text": [f"{config} {split}"]})
    if by == "card":
        (folder / "README.md").write_text(
            "---\nlicense: mit\nconfigs:\n- config_name: en\n  data_files:\n"
            "  - split: train\n    path: en/train-*\n  - split: probe\n    path: en/test-*\n"
            "- config_name: de\n  data_dir: de\n---\n# text\n"
        )
    with pytest.raises(
        UserError, match=r"several configs; pack one with --config: (en, de|de, en)"
    ):
        packed(folder, tmp_path / "out")
    with pytest.raises(UserError, match="no config 'fr'; it has"):
        packed(folder, tmp_path / "out", config="fr")
    sets = packed(folder, tmp_path / "out", config="en")
    test = "probe" if by == "card" else "test"
    assert sets == {
        "train": {"train-00000-of-00001/00000001": {"txt": b"en train"}},
        test: {"test-00000-of-00001/00000001": {"txt": b"en test"}},
    }
    assert packed(folder, tmp_path / "de", config="de").keys() == {"train", "test"}


def test_a_default_config_is_taken_and_the_others_told(tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    for name in ("a", "b", "c"):
        write(folder / "data" / f"{name}.parquet", {"text": [name]})
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: data/a.parquet\n"
        "- config_name: other\n  data_files:\n    train: [data/b.parquet]\n---\n"
    )
    assert packed(folder, tmp_path / "out") == {"": {"a/00000001": {"txt": b"a"}}}
    told = account_of(folder, tmp_path / "out")
    assert "1 configs that are not packed (other); --config NAME packs one" in told
    assert "1 tables of no config that README.md names (data/c.parquet)" in told
    (folder / "README.md").write_text("---\nconfigs:\n- data_files: ../*.parquet\n---\n")
    with pytest.raises(UserError, match=r"no file fits '\.\./\*\.parquet' of config 'default'"):
        packed(folder, tmp_path / "out")


def test_a_header_that_is_no_yaml_is_told(tmp_path: Path) -> None:
    folder = repository(tmp_path / "repo")
    (folder / "README.md").write_text("---\nconfigs: [\n---\n")
    assert "1 README.md whose header is no YAML" in account_of(folder, tmp_path / "out")
    assert packed(folder, tmp_path / "out").keys() == {"train", "test"}


def test_folders_of_splits_and_other_tables(tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    for split in ("train", "validation"):
        write(folder / split / "0000.parquet", {"text": [split]})
    (folder / "extra.csv").write_text("text\na\n")
    (folder / "labels.txt.gz").write_bytes(b"x")
    assert packed(folder, tmp_path / "out") == {
        split: {f"{split}/0000/00000001": {"txt": split.encode()}}
        for split in ("train", "validation")
    }
    told = account_of(folder, tmp_path / "out")
    assert "1 tables of another kind than those that are packed (extra.csv)" in told
    assert "1 files with endings that are not read (labels.txt.gz)" in told
    with pytest.raises(UserError, match=r"^--strict"):
        pack(folder, tmp_path / "strict", strict=True, progress=False)


def test_json_lines_and_csv_by_split(tmp_path: Path) -> None:
    for kind, text in (("jsonl", '{"text": "%s"}\n'), ("csv", "text\n%s\n")):
        folder = tmp_path / kind
        folder.mkdir()
        for split in ("train", "dev"):
            (folder / f"{split}.{kind}").write_text(text % split)
        assert packed(folder, tmp_path / f"out-{kind}") == {
            split: {f"{split}/00000001": {"txt": split.encode()}} for split in ("train", "dev")
        }


def cached(tmp_path: Path, revisions: tuple[str, ...] = ("abc",)) -> Path:
    """A download cache: the files of a repository in ``blobs``, links to them by name."""
    real = repository(tmp_path / "repo")
    cache = tmp_path / "hub" / "datasets--x--y"
    (cache / "blobs").mkdir(parents=True)
    for revision in revisions:
        for path in sorted(real.rglob("*")):
            if path.is_file():
                blob = cache / "blobs" / f"{path.stat().st_size:x}{path.name[:2]}"
                blob.write_bytes(path.read_bytes())
                link = cache / "snapshots" / revision / path.relative_to(real)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(os.path.relpath(blob, link.parent))
    return cache


def test_the_download_cache_with_its_links(tmp_path: Path) -> None:
    cache = cached(tmp_path)
    expected = packed(tmp_path / "repo", tmp_path / "real")
    assert packed(cache, tmp_path / "a") == expected
    assert packed(cache / "snapshots" / "abc", tmp_path / "b") == expected
    out = cache / "snapshots" / "abc" / "data" / "dev-00000-of-00001.parquet"
    write(tmp_path / "secret.parquet", {"text": ["secret"]})
    out.symlink_to(tmp_path / "secret.parquet")
    with pytest.raises(UserError, match=r"dev-00000-of-00001\.parquet: lies outside"):
        packed(cache, tmp_path / "c")


def test_the_revision_of_main_is_taken(tmp_path: Path) -> None:
    cache = cached(tmp_path, ("abc", "def"))
    with pytest.raises(UserError, match=r"2 snapshots; name the one to pack: .*/REVISION"):
        packed(cache, tmp_path / "out")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("def")
    assert packed(cache, tmp_path / "out").keys() == {"train", "test"}
