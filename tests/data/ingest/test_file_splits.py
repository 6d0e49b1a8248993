"""Which split a table is of, by its name alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmscale.data.ingest.file_splits import split_tables, tables_in

ENDINGS = (".json", ".jsonl")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["a.json"], {"": 1}),
        (["train.json"], {"train": 1}),
        (["train_manifest.json", "manifest-dev_clean.json"], {"train": 1, "dev_clean": 1}),
        (["manifest.json"], {"": 1}),
        (["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"], {"train": 2}),
        (["a-0.jsonl", "a-1.jsonl"], {"": 2}),
        (["train_0.json", "train_1.json", "test.json"], {"train": 2, "test": 1}),
        (["a.json", "b.json"], {"a": 1, "b": 1}),
    ],
)
def test_splits_by_name(names: list[str], splits: dict[str, int]) -> None:
    found = split_tables(map(Path, names), "manifests?")
    assert {name: len(tables) for name, tables in found.items()} == splits


def test_tables_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.json", "a.JSONL", ".hidden.json", "c.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "d.json").mkdir()
    assert [path.name for path in tables_in(tmp_path, ENDINGS)] == ["a.JSONL", "b.json"]
    assert tables_in(tmp_path / "b.json", ENDINGS) == [tmp_path / "b.json"]
    assert tables_in(tmp_path / "c.txt", ENDINGS) == []
