"""LLaVA's instructions, packed and read back, beside the rows that were written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from indexed import picture
from layout_packs import Packed, json_of, pack_layout

from mmscale.config import MediaConfig
from mmscale.data.account import Account
from mmscale.data.ingest.layout import LayoutOptions
from mmscale.data.ingest.open_layout import find_layout
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

LAYOUT = LAYOUTS["llava"]
ROLES = {"human": "user", "gpt": "assistant"}


def turns(*values: str) -> list[dict[str, str]]:
    return [
        {"from": ("human", "gpt")[number % 2], "value": value}
        for number, value in enumerate(values)
    ]


ROWS: list[dict[str, Any]] = [
    {"id": "000000033471", "image": "coco/train/a.jpg", "model": "",
     "conversations": turns("<image>\nWhat are the colours?", "White and red.", "And?", "数字")},
    {"id": "two", "image": ["coco/train/a.jpg", "coco/b.png"],
     "conversations": turns("<image>\n<image>\nWhich is larger?", "The second.")},
    {"id": "text.only", "model": "x", "conversations": turns("Hi", "Hello")},
    {"id": "000000033471", "image": "coco/b.png",
     "conversations": turns("Read it.\n<image>", "B")},
    {"id": "between", "image": ["coco/b.png", "coco/b.png", "coco/train/a.jpg"],
     "conversations": turns("One <image> and <image>", "ok", "now <image>?", "yes")},
]  # fmt: skip
KEYS = ["000000033471", "two", "text_only", "000000033471-4", "between"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "playground"
    (folder / "coco/train").mkdir(parents=True)
    (folder / "coco/train/a.jpg").write_bytes(picture(5, 4, "JPEG"))
    (folder / "coco/b.png").write_bytes(picture(9, 9))
    (folder / "llava_instruct.json").write_text(json.dumps(ROWS, indent=2, ensure_ascii=False))
    return folder / "llava_instruct.json"


def as_llava(sample: dict[str, bytes], folder: Path) -> tuple[list[tuple[str, str]], list[bytes]]:
    """What a sample says, as a row of LLaVA, and its pictures in the order of the turns."""
    said, pictures = [], []
    for message in json_of(sample)["messages"]:
        words = ""
        for part in message["content"]:
            if part["type"] == "image":
                pictures.append(sample[part["field"]])
            words += "<image>" if part["type"] == "image" else part["text"]
        said.append((message["role"], words))
    return said, pictures


def check_equal(packed: Packed, folder: Path) -> None:
    assert list(packed) == KEYS
    for row, sample in zip(ROWS, packed.values(), strict=True):
        said, pictures = as_llava(sample, folder)
        expected = [
            (ROLES[turn["from"]], turn["value"].replace("<image>\n", "<image>")
             .replace("\n<image>", "<image>"))
            for turn in row["conversations"]
        ]  # fmt: skip
        assert said == expected
        names = row.get("image", [])
        names = names if isinstance(names, list) else [names]
        assert pictures == [(folder / name).read_bytes() for name in names]
        assert sample.keys() - {"json"} == {
            f"{number}.{name[-3:]}" for number, name in enumerate(names)
        }
        others = {name: value for name, value in json_of(sample).items() if name != "messages"}
        assert others == {name: row[name] for name in ("id", "model") if row.get(name)}, (
            "empty values are none"
        )


def test_every_row_is_one_conversation(source: Path, tmp_path: Path) -> None:
    assert find_layout(source, None) is LAYOUT and LAYOUT.matches(source.parent)
    assert not LAYOUTS["sharegpt"].matches(source)
    account = Account()
    packed = pack_layout("llava", source, tmp_path / "out", account)
    assert packed.keys() == {""}
    check_equal(packed[""], source.parent)
    (line,) = account.lines()
    assert line.startswith(f"1 rows whose id another row has ({source}: row 4); their key ends in")


def test_json_lines_and_several_files(source: Path, tmp_path: Path) -> None:
    lines = [json.dumps(row) + "\n" for row in ROWS]
    source.unlink()
    for name, part in {"train.jsonl": lines, "val.jsonl": lines[1:2]}.items():
        (source.parent / name).write_text("".join(part))
    packed = pack_layout("llava", source.parent, tmp_path / "out")
    assert packed.keys() == {"train", "val"}
    check_equal(packed["train"], source.parent)
    assert list(packed["val"]) == ["two"]
    (source.parent / "train.jsonl").rename(source.parent / "train-00000-of-00002.jsonl")
    (source.parent / "val.jsonl").rename(source.parent / "train-00001-of-00002.jsonl")
    joined = pack_layout("llava", source.parent, tmp_path / "joined")
    assert list(joined["train"])[-2:] == [
        "train-00000-of-00002/between",
        "train-00001-of-00002/two",
    ]


def test_columns_of_other_names(source: Path, tmp_path: Path) -> None:
    rows = [{"pic": "coco/b.png", "talk": turns("<image>", "B"), "kind": "letter"}]
    source.write_text(json.dumps(rows))
    columns = {"image": "pic", "text": "talk", "label": "kind"}
    packed = pack_layout("llava", source, tmp_path / "out", columns=columns)
    assert packed[""]["00000001"].keys() == {"0.png", "json"}
    assert json_of(packed[""]["00000001"])["label"] == "letter"


def test_pictures_elsewhere(source: Path, tmp_path: Path) -> None:
    rows = [
        {"image": "b.png", "conversations": turns("<image>", "B")},
        {"image": str(source.parent / "coco/b.png"), "conversations": turns("<image>", "B")},
    ]
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/train.json").write_text(json.dumps(rows))
    packed = pack_layout(
        "llava", tmp_path / "tables", tmp_path / "out", root=source.parent / "coco"
    )
    assert [sample["0.png"] for sample in packed["train"].values()] == [picture(9, 9)] * 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "gone.jpg"}, r"row 2: image 1 of 1 'gone\.jpg': no such file"),
        ({"image": [""]}, r"row 2: image 1 is ''; write a path or a data URL"),
        ({"image": "../secret.png"}, r"row 2: image 1 of 1 '\.\./secret\.png': lies outside"),
        ({"image": "llava_instruct.json"}, r"row 2: image 1 of 1 .* does not end in png"),
        ({}, r"row 2: placeholder 1 for image, but the row has 0; add the missing one"),
        ({"image": ["coco/b.png"] * 2}, r"row 2: 2 of image, but 1 placeholders <image>"),
        ({"image": "http://images.cocodataset.org/a.jpg"}, r"row 2: image 1: .*none is fetched"),
        ({"image": "data:image/png;base64," + "A" * 2000},
         r"row 2: image 1 of 1 of 1500 bytes are over media\.max_file_bytes=1000"),
    ],
)  # fmt: skip
def test_broken_rows_are_refused(source: Path, tmp_path: Path, row: Any, message: str) -> None:
    (source.parent.parent / "secret.png").write_bytes(picture(1, 1))
    source.write_text(json.dumps([ROWS[0], row | {"conversations": turns("<image>", "x")}]))
    with pytest.raises(UserError, match=rf"llava_instruct\.json: {message}"):
        pack_layout("llava", source, tmp_path / "out", media=MediaConfig(max_file_bytes=1000))


def test_a_broken_file_is_refused(source: Path, tmp_path: Path) -> None:
    whole = source.read_text()
    source.write_text(whole[: whole.index('"between"')])
    with pytest.raises(UserError, match=r"llava_instruct\.json: row 5: not JSON"):
        pack_layout("llava", source, tmp_path / "1")
    with pytest.raises(UserError, match=r"coco: no JSON with 'conversations' in its rows"):
        pack_layout("llava", source.parent / "coco", tmp_path / "2")
    with pytest.raises(UserError, match=r"no split 'test'; it has "):
        LAYOUT.splits(source, LayoutOptions(splits=("test",)), Account())
