"""ShareGPT, with what its writers add: systems, tools, calls and what they answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from layout_packs import json_of, pack_layout

from mmscale.data.account import Account
from mmscale.data.ingest.open_layout import find_layout
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

LAYOUT = LAYOUTS["sharegpt"]
TOOL = {"name": "area", "description": "of a shape", "parameters": {"type": "object"}}
CALL = {"name": "area", "arguments": {"sides": [5, 3]}}
ROWS: list[dict[str, Any]] = [
    {"id": "identity_0", "conversations": [
        {"from": "human", "value": "Who are you?"}, {"from": "gpt", "value": "我是 A."}]},
    {"conversations": [
        {"from": "human", "value": "How large?"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": '{"area": 15}'},
        {"from": "gpt", "value": "It is 15."}],
     "system": "You calculate.", "tools": json.dumps([TOOL])},
    {"id": "identity_0", "conversations": [
        {"from": "system", "value": "Be short."},
        {"from": "user", "value": "Hi", "markdown": None}, {"from": "chatgpt", "value": ""}]},
]  # fmt: skip


def content(*words: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": word} for word in words]


EXPECTED: dict[str, dict[str, Any]] = {
    "identity_0": {"id": "identity_0", "messages": [
        {"role": "user", "content": content("Who are you?")},
        {"role": "assistant", "content": content("我是 A.")}]},
    "00000002": {"messages": [
        {"role": "system", "content": content("You calculate.")},
        {"role": "user", "content": content("How large?")},
        {"role": "assistant", "content": [],
         "tool_calls": [{"type": "function", "function": CALL}]},
        {"role": "tool", "content": content('{"area": 15}')},
        {"role": "assistant", "content": content("It is 15.")}],
        "tools": [{"type": "function", "function": TOOL}]},
    "identity_0-3": {"id": "identity_0", "messages": [
        {"role": "system", "content": content("Be short.")},
        {"role": "user", "content": content("Hi")},
        {"role": "assistant", "content": []}]},
}  # fmt: skip


@pytest.mark.parametrize("lines", [True, False])
def test_every_row_is_one_conversation(tmp_path: Path, lines: bool) -> None:
    source = tmp_path / ("share.jsonl" if lines else "share.json")
    text = "".join(json.dumps(row) + "\n" for row in ROWS) if lines else json.dumps(ROWS)
    source.write_text(text)
    assert find_layout(source, None) is LAYOUT and not LAYOUTS["llava"].matches(source)
    assert not LAYOUTS["messages"].matches(source)
    account = Account()
    packed = pack_layout("sharegpt", source, tmp_path / "out", account)[""]
    if lines:
        assert {key: json_of(sample) for key, sample in packed.items()} == EXPECTED
    assert [json_of(sample) for sample in packed.values()] == list(EXPECTED.values())
    assert all(sample.keys() == {"json"} for sample in packed.values())
    assert [line[:31] for line in account.lines()] == [
        "1 rows whose id another row has",
        "1 turns without any content (" + str(source)[:2],
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "turn 1: its from is 'narrator'"),
        ({"conversations": []}, r"conversations is \[\]; write a list of turns"),
        ({"conversations": [{"from": "function_call", "value": "area(5)"}]}, "turn 1: .*no JSON"),
        ({"conversations": [{"from": "human", "value": "\ud800"}]}, "half of a surrogate pair"),
    ],
)
def test_broken_rows_are_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    (tmp_path / "share.json").write_text(json.dumps([ROWS[0], row]))
    with pytest.raises(UserError, match=rf"share\.json: row 2: .*{message}|row 2: {message}"):
        pack_layout("sharegpt", tmp_path / "share.json", tmp_path / "out")
