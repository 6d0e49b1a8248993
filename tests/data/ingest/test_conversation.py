"""Turns of every writer in one form, with each picture and clip where it was mentioned."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from indexed import picture, sound

from mmscale.data.account import Account
from mmscale.data.ingest.conversation import OPENAI, SHAREGPT, conversation_columns
from mmscale.errors import UserError

PNG, WAV = picture(3, 2), sound(100, 8000)


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def image(field: str) -> dict[str, str]:
    return {"type": "image", "field": field}


def url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def of(row: dict[str, Any], form=SHAREGPT, account: Account | None = None) -> dict[str, Any]:
    return conversation_columns(row, form, "rows: row 3", account or Account())


def said(*values: str, **more: Any) -> dict[str, Any]:
    """A row of ShareGPT."""
    roles = ["human", "gpt"] * len(values)
    turns = [{"from": role, "value": value} for role, value in zip(roles, values, strict=False)]
    return {"conversations": turns, **more}


def openai(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("<image>\nWhat?", [image("0.jpg"), text("What?")]),
        ("What?\n<image>", [text("What?"), image("0.jpg")]),
        ("<image>", [image("0.jpg")]),
        ("<image>\n\nWhat?\n", [image("0.jpg"), text("\nWhat?\n")]),
        ("a <image> b", [text("a "), image("0.jpg"), text(" b")]),
        ("a\n<image>\nb", [text("a\n"), image("0.jpg"), text("b")]),
    ],
)
def test_where_a_picture_stands_in_a_text(words: str, parts: list[Any]) -> None:
    columns = of(said(words, "x", image="a/b.c.JPG"))
    assert columns == {
        "image": ["a/b.c.JPG"],
        "messages": [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [text("x")]},
        ],
    }


def test_several_media_of_both_kinds_in_several_turns() -> None:
    columns = of(
        said(
            "<image>\n<image>\nsame?", "no", "and <audio>, <image>?", "yes", "sure?",
            image=["a.jpg", "b.png", "c.webp"], audio="d.flac", id=7,
        )
    )  # fmt: skip
    assert columns["image"] == ["a.jpg", "b.png", "c.webp"] and columns["audio"] == ["d.flac"]
    assert [message["content"] for message in columns["messages"]] == [
        [image("0.jpg"), image("1.png"), text("same?")],
        [text("no")],
        [text("and "), {"type": "audio", "field": "0.flac"}, text(", "), image("2.webp"),
         text("?")],
        [text("yes")],
        [text("sure?")],
    ]  # fmt: skip
    assert columns["id"] == 7


def test_roles_of_every_writer() -> None:
    names = {
        "system": "system", "developer": "system", "human": "user", "User": "user",
        "gpt": "assistant", "ChatGPT": "assistant", "model": "assistant", "observation": "tool",
        "function": "tool", "tool": "tool",
    }  # fmt: skip
    row = {"conversations": [{"from": name, "value": "x"} for name in names]}
    assert [message["role"] for message in of(row)["messages"]] == list(names.values())


def test_calls_of_functions_have_one_form() -> None:
    call = {"name": "area", "arguments": {"sides": [5, 3]}}
    rows = [
        ({"conversations": [{"from": "function_call", "value": json.dumps(call)}]}, SHAREGPT),
        ({"conversations": [{"from": "function_call", "value": json.dumps([call])}]}, SHAREGPT),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [
            {"type": "function", "function": call | {"arguments": '{"sides": [5, 3]}'}}]}]},
         OPENAI),
        ({"messages": [{"role": "assistant", "function_call": call}]}, OPENAI),
    ]  # fmt: skip
    calls = [{"type": "function", "function": call}]
    for row, form in rows:
        account = Account()
        assert of(row, form, account) == {
            "messages": [{"role": "assistant", "content": [], "tool_calls": calls}]
        }
        assert account.lines() == []


def test_answers_of_tools_keep_what_they_answer() -> None:
    turns = [
        {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f"}}]},
        {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "[1]"},
        {"role": "assistant", "content": "1", "weight": 0, "refusal": None},
    ]
    account = Account()
    first, second, third = of({"messages": turns}, OPENAI, account)["messages"]
    assert first["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {}}}
    ]
    assert second == {"role": "tool", "content": [text("[1]")], "name": "f", "tool_call_id": "c1"}
    assert third == {"role": "assistant", "content": [text("1")], "weight": 0}
    assert account.lines() == []


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("as_text", [True, False])
def test_tools_have_one_form(wrapped: bool, as_text: bool) -> None:
    bare = {"name": "f", "parameters": {}}
    tools: Any = [{"type": "function", "function": bare} if wrapped else bare]
    columns = of(said("a", "b", tools=json.dumps(tools) if as_text else tools))
    assert columns["tools"] == [{"type": "function", "function": bare}]
    assert "tools" not in of(said("a", "b", tools="[]" if as_text else []))


def test_system_columns() -> None:
    assert of(said("a", "b", system="be kind"))["messages"][0] == {
        "role": "system",
        "content": [text("be kind")],
    }
    account = Account()
    turns = [{"from": "system", "value": "be short"}, {"from": "human", "value": "a"}]
    messages = of({"conversations": turns, "system": "be kind"}, SHAREGPT, account)["messages"]
    assert [message["content"] for message in messages] == [[text("be short")], [text("a")]]
    assert account.lines()[0].startswith("1 system columns beside a system turn, left out (rows:")


@pytest.mark.parametrize(
    ("part", "kind", "medium"),
    [
        ({"type": "image_url", "image_url": {"url": url(PNG, "image/png")}}, "image", PNG),
        ({"type": "image_url", "image_url": url(PNG, "image/jpeg")}, "image", PNG),
        ({"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}, "image", "a.png"),
        ({"type": "input_image", "image_url": "file:///x/a%20b.png"}, "image", "/x/a b.png"),
        ({"type": "image", "image": "a.png", "text": None}, "image", "a.png"),
        ({"type": "image", "path": "a.png"}, "image", "a.png"),
        ({"type": "image", "source": {"type": "base64", "data": url(PNG, "")[13:]}}, "image", PNG),
        ({"type": "input_audio", "input_audio": {"data": url(WAV, "")[13:], "format": "wav"}},
         "audio", WAV),
        ({"type": "audio", "audio_url": "a.wav"}, "audio", "a.wav"),
        ({"type": "audio", "audio": {"path": "a.wav", "bytes": None}}, "audio", "a.wav"),
    ],
)  # fmt: skip
def test_typed_parts(part: dict[str, Any], kind: str, medium: Any) -> None:
    columns = of(openai([{"type": "text", "text": "see"}, part, "and say"]), OPENAI)
    assert columns[kind] == [medium]
    ending = "png" if kind == "image" else "wav"
    assert columns["messages"][0]["content"] == [
        text("see"), {"type": kind, "field": f"0.{ending}"}, text("and say"),
    ]  # fmt: skip


def test_parts_that_stand_for_a_column() -> None:
    row = openai([{"type": "image"}, {"type": "text", "text": "?"}], images=[{"path": "a.png"}])
    assert of(row, OPENAI) == {
        "image": ["a.png"],
        "messages": [{"role": "user", "content": [image("0.png"), text("?")]}],
    }
    assert of(openai("<image>?", images=["a.png"]), OPENAI)["messages"][0]["content"] == [
        image("0.png"),
        text("?"),
    ]
    assert of(openai("an <image> tag"), OPENAI)["messages"][0]["content"] == [
        text("an <image> tag")
    ]


def test_what_is_not_taken_is_noted() -> None:
    account = Account()
    turns = [{"from": "human", "value": "", "markdown": "x"}, {"from": "gpt", "value": "y"}]
    messages = of({"conversations": turns}, SHAREGPT, account)["messages"]
    assert messages[0] == {"role": "user", "content": []}
    assert [line.partition(";")[0] for line in account.lines()] == [
        "1 turns without any content (rows: row 3: turn 1)",
        "1 keys of turns that are not taken ('markdown' of rows: row 3: turn 1)",
    ]


CALL = {"from": "function_call"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (said("<image>?", "x"), "placeholder 1 for image, but the row has 0"),
        (said("<image><image>", image="a.png"), "placeholder 2 for image, but the row has 1"),
        (said("?", "x", image="a.png"), "1 of image, but 0 placeholders <image>"),
        (said("<image>", audio=["a.wav", "b"], image="a.png"), "2 of audio, but 0 placeholders"),
        (said("<image>", image="https://example.org/a.png"), r"image 1: 'https://exa.*download it"),
        (said("<image>", image="s3://b/a.png"), r"image 1: 's3://b/a\.png' is an address"),
        (said("<image>", image="data:image/png,abc"), "image 1: a data URL that is not base64"),
        (said("<image>", image="data:image/png;base64,a*c="), r"image 1: 'a\*c='… is no base64"),
        (said("<image>", image="data:image/png;base64,"), "image 1: of no bytes"),
        (said("<image>", image=[3]), "image 1 is 3; write a path or a data URL"),
        (said("?", "x", videos=["a.mp4"]), "has videos, which are not read"),
        ({"conversations": []}, r"conversations is \[\]; write a list of turns"),
        ({"id": 1}, "conversations is None; write a list of turns"),
        ({"conversations": ["a"]}, "turn 1 is 'a'; write an object with from"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "turn 1: its from is 'narrator'"),
        ({"conversations": [{"value": "x"}]}, "turn 1: its from is None"),
        ({"conversations": [{"from": "gpt"}]}, "turn 1: no value; write its text"),
        ({"conversations": [{"from": "gpt", "value": 3}]}, "turn 1: its content is 3; write a"),
        ({"conversations": [CALL | {"value": "f(1)"}]}, r"turn 1: a call .* 'f\(1\)', which is no"),
        ({"conversations": [CALL | {"value": "[1]"}]}, "turn 1: a call of a function is 1; write"),
        ({"conversations": [CALL | {"value": '{"name": "f", "arguments": [1]}'}]},
         r"turn 1: arguments of f are \[1\]; write an object"),
        (said("a", "b", tools="[{"), r"tools is '\[\{', which is no JSON"),
        (said("a", "b", system=["x"]), r"system is \['x'\]; write a text"),
        (said("a", "b", messages=[]), "has both conversations and messages"),
    ],
)  # fmt: skip
def test_broken_rows_are_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^rows: row 3: .*?{message}|^rows: row 3: {message}"):
        of(row)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "video_url"}], "turn 1: part 1: its type is 'video_url'; write one of text"),
        ([{"text": "x"}], "turn 1: part 1: its type is None"),
        ([{"type": "text"}], "turn 1: part 1: text is None; write a text"),
        ([{"type": "image"}], "placeholder 1 for image, but the row has 0"),
        ([{"type": "image_url", "image_url": {"url": "http://a/b.png"}}],
         "image 1: 'http://a/b.png' is an address, and none is fetched"),
        ([{"type": "image_url", "image_url": {"x": {"y": {}}}}], "image 1 is None; write a path"),
        ({"a": 1}, r"turn 1: its content is \{'a': 1\}; write a text or a list"),
    ],
)  # fmt: skip
def test_broken_parts_are_refused(content: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"^rows: row 3: {message}"):
        of(openai(content), OPENAI)


def test_names_of_a_form_can_be_others() -> None:
    form = replace(OPENAI, turns="chat", role="who", content="what", images=("shot",))
    row = {"chat": [{"who": "user", "what": "<image>"}], "shot": "a.png", "image": "b.png"}
    account = Account()
    assert of(row, form, account) == {
        "image": ["a.png"],
        "messages": [{"role": "user", "content": [image("0.png")]}],
    }
    assert account.lines() == [
        "1 columns of media that are not those named, left out ('image' of rows: row 3); --image "
        "or --audio names another"
    ]
