"""Objects one after another, whatever the file's form and wherever a read ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmscale.data.ingest import json_rows
from mmscale.data.ingest.json_rows import first_objects, read_objects
from mmscale.errors import UserError

ROWS = [
    {"a": "x" * length, "b": [1, -2.5e-3, True, None, {"deep": ["数字", '"\\', "😀"]}]}
    for length in range(60)
]
FORMS = {
    "lines": "".join(json.dumps(row) + "\n\n" for row in ROWS),
    "list": json.dumps(ROWS),
    "indented": " \n" + json.dumps(ROWS, indent=3, ensure_ascii=False) + "\n",
}


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_form_gives_the_same_objects(tmp_path: Path, monkeypatch, chunk, form, mark) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_text(mark + FORMS[form], encoding="utf-8")
    numbers, rows = zip(*read_objects(path), strict=True)
    assert list(rows) == ROWS
    assert list(numbers) == [n * 2 + 1 if form == "lines" else n + 1 for n in range(len(ROWS))]


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_a_list_within_an_object(tmp_path: Path, monkeypatch, chunk: int) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"n": 12, "other": [{"rows": [1]}], "rows": ROWS, "z": 1}))
    assert [row for _, row in read_objects(path, "rows")] == ROWS
    with pytest.raises(UserError, match="no list 'lines' in it"):
        list(read_objects(path, "lines"))
    assert first_objects(path, "rows", many=2) == ROWS[:2]
    assert first_objects(path, "lines") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a" 2}]', r"row 2: not JSON \(Expecting ':'"),
        ('[{"a": 1} {"a": 2}]', r"row 2: not JSON \('\{' where ',' must be\)"),
        ('[{"a": 1}, {"a": "cut', r"row 2: not JSON \(Unterminated string"),
        ('[{"a": 1}', r"row 2: not JSON \('' where ',' must be\)"),
        ("[1]", r"row 1: not an object"),
        ('{"a": 1}\n[1]\n', r"row 2: not an object"),
        ('{"a": 1}\n{"a": \n', r"row 2: not JSON"),
        ('{\n "a": 1\n}\n', r"row 1: not JSON .*one object a line, or one list"),
        ('[{"a": ' + "9" * 5000 + "}]", r"row 1: not JSON \(Exceeds the limit"),
        ("[" + '{"a":' * 100_000 + "1" + "}" * 100_000 + "]", r"row 1: not JSON \(nested too deep"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(UserError, match=rf"rows\.json: {message}"):
        list(read_objects(tmp_path / "rows.json"))


def test_rows_have_a_bound(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(json_rows, "_CHUNK", 10)
    for form in ('[{"a": "%s"}]', '{"a": "%s"}'):
        (tmp_path / "rows.json").write_text(form % ("x" * 5000))
        with pytest.raises(UserError, match=r"row 1: .*over 1000|line 1: over 1000"):
            list(read_objects(tmp_path / "rows.json"))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(UserError, match=r"rows\.json: not UTF-8"):
        list(read_objects(tmp_path / "rows.json"))
    with pytest.raises(UserError, match=r"gone\.json: cannot be read"):
        list(read_objects(tmp_path / "gone.json"))
