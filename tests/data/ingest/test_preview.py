"""A dry run shows the first samples, what becomes of columns and files, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from indexed import picture

from mmscale.cli import main


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(["data", "pack", *words, "--dry-run"])
    return capsys.readouterr().out


def test_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(picture(number + 1, 2))
    rows = "".join(f"{n}.png,text {n},{n}.png,cat\n" for n in range(5))
    (tmp_path / "t.csv").write_text(f"photo,text,other,class\n{rows}")
    out = tmp_path / "out"
    words = [str(tmp_path / "t.csv"), "--out", str(out), "--image", "photo", "--label", "class"]
    sizes = [(tmp_path / f"{n}.png").stat().st_size for n in range(3)]
    assert shown(capsys, *words) == (
        f"{tmp_path}/t.csv: layout table\n"
        "one set: 5 samples, such as\n"
        f"  00000001\n    png: 0.png ({sizes[0]} bytes)\n    txt: text 0\n"
        '    json: {"other": "0.png", "label": "cat"}\n'
        f"  00000002\n    png: 1.png ({sizes[1]} bytes)\n    txt: text 1\n"
        '    json: {"other": "1.png", "label": "cat"}\n'
        f"  00000003\n    png: 2.png ({sizes[2]} bytes)\n    txt: text 2\n"
        '    json: {"other": "2.png", "label": "cat"}\n'
        "what becomes of each column and file\n"
        "  photo  → the picture: png, jpg, … (several: 0.png, 1.png, …)\n"
        "  class  → json.label\n"
        "  other  → json.other\n"
        "  text   → txt (several: 0.txt, 1.txt, …)\n"
        "what is left out, or may surprise\n"
        "  1 columns that name files that exist, and stay text in json (other: '0.png'); "
        "--image COL or --audio COL packs the files\n"
    )
    assert not out.exists()
    with pytest.raises(SystemExit):
        main(["data", "pack", *words, "--dry-run", "--strict"])
    assert "--strict: 1 columns that name files" in capsys.readouterr().err


def test_splits_and_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        columns = {"img": [picture(1, 1)] * 4, "note": [split] * 4, "thumb": [picture(2, 2)] * 4}
        pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")
    words = [str(folder), "--out", str(tmp_path / "out"), "--json"]
    facts = json.loads(shown(capsys, *words))
    assert {name: found["samples"] for name, found in facts["sets"].items()} == {
        "train": 4, "test": 4,
    }  # fmt: skip
    first = facts["sets"]["test"]["first"]
    assert len(first) == 3 and first[0]["key"] == "test-00000-of-00001/00000001"
    assert first[0]["fields"].keys() == {"png", "json"}
    assert facts["uses"] == {
        "img": "the picture: png, jpg, … (several: 0.png, 1.png, …)",
        "note": "json.note",
        "thumb": "left out",
    }
    assert facts["left_out"][0].startswith(
        "2 columns that hold media and are left out (test-00000-of-00001.parquet: thumb, train-"
    )


def test_every_layout_has_a_line_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "pack", "--help"])
    help_text = capsys.readouterr().out
    from mmscale.registry import LAYOUTS

    for name, layout in LAYOUTS.all().items():
        assert f"{name} " in help_text and layout.summary in help_text
    assert "LAYOUTS" not in help_text
