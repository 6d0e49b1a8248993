"""OpenAI's messages: typed parts with pictures and sound within them, and files beside them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from indexed import picture
from layout_packs import json_of, noise, pack_layout, write_sound

from mmscale.config import MediaConfig
from mmscale.data.ingest.open_layout import find_layout
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

LAYOUT = LAYOUTS["messages"]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(words: str) -> dict[str, Any]:
    return {"role": "assistant", "content": words}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def write_lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_line_is_one_conversation(tmp_path: Path) -> None:
    png, jpg = picture(3, 2), picture(8, 8, "JPEG")
    wav = write_sound(tmp_path / "s/a.wav", noise(800))
    (tmp_path / "b.jpg").write_bytes(jpg)
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    source = write_lines(
        tmp_path / "chat.jsonl",
        {"messages": [{"role": "system", "content": "Be kind."}, user("Hi <image>"), answer("Yo")]},
        {"messages": [
            user([text("See"),
                  {"type": "image_url",
                   "image_url": {"url": f"data:image/jpeg;base64,{encoded(png)}"}},
                  {"type": "input_audio", "input_audio": {"data": encoded(wav), "format": "wav"}},
                  {"type": "image_url", "image_url": {"url": "b.jpg"}}, text("and?")]),
            answer("ok"), user([{"type": "audio", "audio": "s/a.wav"}]), answer("a sound")]},
        {"messages": [user("f?"), {"role": "assistant", "content": None, "tool_calls": [call]},
                      {"role": "tool", "tool_call_id": "c", "content": "1"}, answer("1")],
         "tools": [tool], "parallel_tool_calls": False},
        {"messages": [user("<image>\nsame as <image>?"), answer("no")],
         "images": ["b.jpg", f"data:image/png;base64,{encoded(png)}"]},
    )  # fmt: skip
    assert find_layout(source, None) is LAYOUT and not LAYOUTS["sharegpt"].matches(source)
    packed = list(pack_layout("messages", source, tmp_path / "out")[""].values())
    assert json_of(packed[0])["messages"] == [
        {"role": "system", "content": [text("Be kind.")]},
        user([text("Hi <image>")]),
        answer([text("Yo")]),
    ]
    assert packed[1].keys() == {"0.png", "1.jpg", "0.wav", "1.wav", "json"}
    assert [packed[1][name] for name in ("0.png", "1.jpg", "0.wav", "1.wav")] == [
        png, jpg, wav, wav,
    ]  # fmt: skip
    assert json_of(packed[1])["messages"] == [
        user([text("See"), {"type": "image", "field": "0.png"}, {"type": "audio", "field": "0.wav"},
              {"type": "image", "field": "1.jpg"}, text("and?")]),
        answer([text("ok")]), user([{"type": "audio", "field": "1.wav"}]),
        answer([text("a sound")]),
    ]  # fmt: skip
    parsed = call | {"function": {"name": "f", "arguments": {"x": 1}}}
    assert json_of(packed[2]) == {
        "messages": [
            user([text("f?")]), {"role": "assistant", "content": [], "tool_calls": [parsed]},
            {"role": "tool", "tool_call_id": "c", "content": [text("1")]}, answer([text("1")]),
        ],
        "tools": [tool], "parallel_tool_calls": False,
    }  # fmt: skip
    assert packed[3]["0.jpg"] == jpg and packed[3]["1.png"] == png
    assert json_of(packed[3])["messages"][0] == user(
        [{"type": "image", "field": "0.jpg"}, text("same as "), {"type": "image", "field": "1.png"},
         text("?")]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "image_url", "image_url": {"url": "https://a.org/b.png"}}],
         r"row 2: image 1: 'https://a\.org/b\.png' is an address, and none is fetched; download"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}],
         r"row 2: image 1: '!'… is no base64"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}],
         r"row 2: image 1 of 1 of 5 bytes that begin with b'hello' is none of png"),
        ([{"type": "input_audio", "input_audio": {"data": encoded(picture(1, 1))}}],
         r"row 2: audio 1 of 1 is png, not one of wav"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4000}}],
         r"row 2: image 1 of 1 of 3000 bytes are over media\.max_file_bytes=2000"),
        ([{"type": "file", "file": {}}], r"row 2: turn 1: part 1: its type is 'file'"),
        (None, r"row 2: turn 1: no content; write its text"),
    ],
)  # fmt: skip
def test_broken_rows_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    source = write_lines(
        tmp_path / "chat.jsonl", {"messages": [user("Hi")]}, {"messages": [user(content)]}
    )
    with pytest.raises(UserError, match=rf"chat\.jsonl: {message}"):
        pack_layout("messages", source, tmp_path / "out", media=MediaConfig(max_file_bytes=2000))


def test_a_broken_line_is_refused(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "chat.jsonl", {"messages": [user("Hi")]})
    source.write_text(source.read_text() + '{"messages": [\n')
    with pytest.raises(UserError, match=r"chat\.jsonl: row 2: not JSON"):
        pack_layout("messages", source, tmp_path / "out")
