"""LLaMA-Factory's folder of data: what dataset_info.json says of each file is what is packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from indexed import picture
from layout_packs import json_of, noise, pack_layout, write_sound

from mmscale.data.account import Account
from mmscale.data.ingest.open_layout import find_layout
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

LAYOUT = LAYOUTS["llama_factory"]


def said(role: str, *parts: Any) -> dict[str, Any]:
    return {
        "role": role,
        "content": [
            {"type": "text", "text": part} if isinstance(part, str) else part for part in parts
        ],
    }


OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user",
               "assistant_tag": "assistant"}  # fmt: skip
INFO: dict[str, Any] = {
    "identity": {"file_name": "identity.json"},
    "history": {"file_name": "history.jsonl", "columns": {
        "prompt": "q", "query": "more", "response": "a", "system": "sys", "history": "before"}},
    "book": {"file_name": "book.json", "columns": {"prompt": "text"}},
    "glaive": {"file_name": "glaive.json", "formatting": "sharegpt",
               "columns": {"messages": "conversations", "tools": "tools"}},
    "own_tags": {"file_name": "own.json", "formatting": "sharegpt",
                 "columns": {"messages": "chat", "system": "rules"},
                 "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "Q",
                          "assistant_tag": "A", "observation_tag": "O"}},
    "mllm": {"file_name": "mllm.json", "formatting": "sharegpt",
             "columns": {"messages": "messages", "images": "images", "audios": "audios"},
             "tags": OPENAI_TAGS},
    "folder": {"file_name": "parts"},
    "hub": {"hf_hub_url": "org/name"},
    "lost": {"file_name": "lost.json"},
    "dpo": {"file_name": "dpo.json", "ranking": True},
    "table": {"file_name": "table.parquet"},
}  # fmt: skip
CALL = {"name": "f", "arguments": {"x": 1}}
FILES: dict[str, Any] = {
    "identity.json": [{"instruction": "hi", "input": "", "output": "I am <image>."},
                      {"instruction": "add", "input": "1 2", "output": "3", "source": "s"}],
    "book.json": [{"text": "从前", "year": 3}],
    "glaive.json": [{"conversations": [
        {"from": "human", "value": "f?"}, {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "1"}, {"from": "gpt", "value": "one"}], "tools": "[]"}],
    "own.json": [{"chat": [{"who": "Q", "what": "a"}, {"who": "A", "what": "b"},
                           {"who": "O", "what": "c"}], "rules": "be kind", "system": "not that"}],
    "mllm.json": [{"messages": [{"role": "user", "content": "<image>Who? <audio>"},
                                {"role": "assistant", "content": "A cat."}],
                   "images": ["mllm_data/1.jpg"], "audios": ["mllm_data/1.mp3"]}],
    "parts/a.json": [{"instruction": "a", "output": "1"}],
    "parts/b.json": [{"instruction": "b", "output": "2"}],
    "dpo.json": [{"instruction": "a", "chosen": "b", "rejected": "c"}],
    "table.parquet": [],
}  # fmt: skip
EXPECTED: dict[str, list[dict[str, Any]]] = {
    "identity": [
        {"messages": [said("user", "hi"), said("assistant", "I am <image>.")]},
        {"source": "s", "messages": [said("user", "add\n1 2"), said("assistant", "3")]},
    ],
    "history": [
        {"messages": [said("system", "s"), said("user", "1"), said("assistant", "2"),
                      said("user", "3"), said("assistant", "4")]},
    ],
    "book": [{"year": 3}],
    "glaive": [{"messages": [
        said("user", "f?"), said("assistant") | {"tool_calls": [
            {"type": "function", "function": CALL}]}, said("tool", "1"),
        said("assistant", "one")]}],
    "own_tags": [{"system": "not that", "messages": [
        said("system", "be kind"), said("user", "a"), said("assistant", "b"), said("tool", "c")]}],
    "mllm": [{"messages": [
        said("user", {"type": "image", "field": "0.jpg"}, "Who? ",
             {"type": "audio", "field": "0.mp3"}), said("assistant", "A cat.")]}],
    "folder": [{"messages": [said("user", "a"), said("assistant", "1")]},
               {"messages": [said("user", "b"), said("assistant", "2")]}],
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "parts").mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps(INFO))
    for name, rows in FILES.items():
        (folder / name).write_text(json.dumps(rows))
    row = {"q": "3", "a": "4", "sys": "s", "before": [["1", "2"]]}
    (folder / "history.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "mllm_data").mkdir()
    (folder / "mllm_data/1.jpg").write_bytes(picture(4, 4, "JPEG"))
    write_sound(folder / "mllm_data/1.mp3", noise(8000))
    return folder


@pytest.mark.parametrize("named", [".", "dataset_info.json"])
def test_every_data_set_is_a_split(source: Path, tmp_path: Path, named: str) -> None:
    assert find_layout(source / named, None) is LAYOUT
    account = Account()
    packed = pack_layout("llama_factory", source / named, tmp_path / "out", account)
    assert {
        split: [json_of(sample) for sample in samples.values()] for split, samples in packed.items()
    } == EXPECTED
    (book,) = packed["book"].values()
    assert book["txt"].decode() == "从前"
    (mllm,) = packed["mllm"].values()
    assert mllm["0.jpg"] == (source / "mllm_data/1.jpg").read_bytes()
    assert mllm["0.mp3"] == (source / "mllm_data/1.mp3").read_bytes()
    assert list(packed["folder"]) == ["a/00000001", "b/00000001"]
    assert [line.partition(";")[0] for line in account.lines()] == [
        "2 data sets whose files are not here, left out (hub, lost)",
        "1 data sets of preferred and rejected answers, left out (dpo)",
        "1 data sets that are no JSON, left out (table)",
    ]


def test_a_question_that_is_empty_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"a": {"file_name": "a.json"}}')
    (tmp_path / "a.json").write_text('[{"instruction": "", "output": "x"}]')
    account = Account()
    (sample,) = pack_layout("llama_factory", tmp_path, tmp_path / "out", account)["a"].values()
    assert json_of(sample) == {"messages": [said("user"), said("assistant", "x")]}
    assert account.lines()[0].startswith(f"1 turns without any content ({tmp_path}/a.json: row 1")


def test_one_that_is_asked_for(source: Path, tmp_path: Path) -> None:
    packed = pack_layout("llama_factory", source, tmp_path / "1", split="mllm")
    assert packed.keys() == {""} and packed[""]["00000001"].keys() == {"0.jpg", "0.mp3", "json"}
    with pytest.raises(UserError, match=r"dataset_info\.json: lost: .*not here.*; download them"):
        pack_layout("llama_factory", source, tmp_path / "2", split="lost")
    with pytest.raises(UserError, match=r"has no split 'gone'; it has identity, history"):
        pack_layout("llama_factory", source, tmp_path / "3", split="gone")


@pytest.mark.parametrize(
    ("info", "row", "message"),
    [
        ({}, {"instruction": "x", "input": "y"}, r"identity\.json: row 1: no output; write the"),
        ({}, {"instruction": "x"}, r"identity\.json: row 1: no output; write the answer, or"),
        ({"columns": {"prompt": "text"}}, {"text": ""}, r"row 1: text is ''; write a text"),
        ({}, {"instruction": "x", "output": "y", "history": [["a"]]}, r"row 1: history 1 is \['a"),
        ({"formatting": "odd"}, {}, r"dataset_info\.json: identity: formatting is 'odd'"),
        ({"columns": {"prompt": 3}}, {}, r"identity: columns is \{'prompt': 3\}; write names"),
        ({"file_name": ""}, {}, r"identity: no file_name; name its file"),
        ({"file_name": "../x.json"}, {}, r"identity: '\.\./x\.json' lies outside"),
        ({"columns": {"images": "images"}},
         {"instruction": "<image>", "output": "y", "images": []},
         r"row 1: placeholder 1 for image, but the row has 0"),
        ({"columns": {"images": "images"}},
         {"instruction": "<image>", "output": "y", "images": ["gone.png"]},
         r"row 1: image 1 of 1 'gone\.png': no such file"),
    ],
)  # fmt: skip
def test_broken_folders_are_refused(tmp_path: Path, info, row, message: str) -> None:
    infos = {"identity": {"file_name": "identity.json"} | info}
    (tmp_path / "dataset_info.json").write_text(json.dumps(infos))
    (tmp_path / "identity.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match=message):
        pack_layout("llama_factory", tmp_path, tmp_path / "out")


def test_other_tables_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"citation": "", "features": {"a": {}}}')
    assert not LAYOUT.matches(tmp_path), "as Hugging Face writes it"
    (tmp_path / "dataset_info.json").write_text("{")
    assert not LAYOUT.matches(tmp_path)
    with pytest.raises(UserError, match=r"dataset_info\.json: cannot be read"):
        pack_layout("llama_factory", tmp_path, tmp_path / "out")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"dataset_info\.json: missing; name the folder"):
        pack_layout("llama_factory", tmp_path / "none", tmp_path / "out2")
