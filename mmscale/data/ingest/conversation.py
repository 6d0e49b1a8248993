"""One form for every conversation: ``json.messages``, whoever wrote it (docs/formats.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from mmscale.data.account import Account, Notice
from mmscale.data.index.probe import Kind
from mmscale.data.ingest.conversation_media import ContentPart, ConversationMedia, text_parts
from mmscale.errors import UserError

KEYS_UNREAD = Notice("keys of turns that are not taken", "move what they say into the text")
EMPTY_TURNS = Notice("turns without any content", "they are kept, empty")
SYSTEM_TWICE = Notice(
    "system columns beside a system turn, left out", "the turn counts; remove one of the two"
)
MEDIA_BESIDE = Notice(
    "columns of media that are not those named, left out", "--image or --audio names another"
)

# A turn of this role is one of the assistant that calls tools.
CALL = "call"
ROLES: dict[str, str] = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "ai"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(
        ("tool", "observation", "function", "function_response", "tool_response"), "tool"
    ),
    **dict.fromkeys(("function_call", "tool_call"), CALL),
}
# What a turn may say besides, kept as it is.
_KEPT = ("name", "tool_call_id", "weight", "reasoning_content")
_TEXTS = ("text", "input_text", "output_text")
_IMAGES = ("image", "image_url", "input_image")
_AUDIOS = ("audio", "audio_url", "input_audio")


@dataclass(frozen=True, kw_only=True)
class ConversationForm:
    """Where a row has what.

    Attributes:
        turns: column of the list of turns.
        role, content: keys of a turn.
        roles: by the name that a turn's role has, in lower case: user, assistant, system, tool, or
            `CALL`.
        images, audios: columns of media that stand beside the turns; those a row has are joined.
        system, tools: columns; None: there is none.
        marks: whether ``<image>`` is a placeholder even in a row without any medium.
    """

    turns: str = "conversations"
    role: str = "from"
    content: str = "value"
    roles: dict[str, str] = field(default_factory=lambda: ROLES)
    images: tuple[str, ...] = ("image", "images")
    audios: tuple[str, ...] = ("audio", "audios")
    system: str | None = "system"
    tools: str | None = "tools"
    marks: bool = True


SHAREGPT = ConversationForm()
OPENAI = ConversationForm(turns="messages", role="role", content="content", marks=False)


def conversation_columns(
    row: dict[str, Any], form: ConversationForm, where: str, account: Account
) -> dict[str, Any]:
    """Columns as `RowReader.row` takes them: ``image``, ``audio``, ``messages``, ``tools`` and what
    else the row has.

    Raises `UserError` naming the row and turn, with the remedy.
    """
    row = dict(row)
    turns = row.pop(form.turns, None)
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: {form.turns} is {turns!r:.40}; write a list of turns")
    if row.get("videos") or row.get("video"):
        raise UserError(f"{where}: has videos, which are not read; write frames as pictures")
    given: dict[Kind, list[Any]] = {
        "image": _joined(row, form.images), "audio": _joined(row, form.audios),
    }  # fmt: skip
    media = ConversationMedia(where, given)
    marks = form.marks or media.any_given()
    messages = [
        _message(turn, form, media, marks, f"{where}: turn {number}", account)
        for number, turn in enumerate(turns, start=1)
    ]
    media.check_all_taken()
    system = row.pop(form.system, None) if form.system else None
    if system and messages[0]["role"] == "system":
        account.note(SYSTEM_TWICE, where)
    elif system:
        messages.insert(
            0, {"role": "system", "content": text_parts(_text(system, "system", where))}
        )
    tools = _tools(row.pop(form.tools, None), where) if form.tools else []
    for kind in media.taken:
        if row.pop(kind, None):
            account.note(MEDIA_BESIDE, f"{kind!r} of {where}")
    if "messages" in row:
        raise UserError(f"{where}: has both {form.turns} and messages; remove one of them")
    return {
        **row,
        **{kind: taken for kind, taken in media.taken.items() if taken},
        "messages": messages,
        **({"tools": tools} if tools else {}),
    }


def _message(
    turn: Any,
    form: ConversationForm,
    media: ConversationMedia,
    marks: bool,
    where: str,
    account: Account,
) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise UserError(f"{where} is {turn!r:.40}; write an object with {form.role}")
    turn = {name: value for name, value in turn.items() if value is not None}
    said = turn.pop(form.role, None)
    role = form.roles.get(str(said).lower())
    if role is None:
        raise UserError(
            f"{where}: its {form.role} is {said!r:.40}; write one of {', '.join(form.roles)}"
        )
    content = turn.pop(form.content, None)
    calls = _calls(turn, where)
    if role == CALL:
        role, content, calls = "assistant", "", [*_calls_of(content, where), *calls]
    if content is None and not calls:
        raise UserError(f"{where}: no {form.content}; write its text, or remove the turn")
    parts = _parts(content, media, marks, where)
    if not parts and not calls:
        account.note(EMPTY_TURNS, where)
    kept = {name: turn.pop(name) for name in _KEPT if name in turn}
    for name in turn:
        account.note(KEYS_UNREAD, f"{name!r} of {where}")
    return {"role": role, "content": parts, **({"tool_calls": calls} if calls else {}), **kept}


def _parts(content: Any, media: ConversationMedia, marks: bool, where: str) -> list[ContentPart]:
    if content is None:
        return []
    if isinstance(content, str):
        return media.split_text(content) if marks else text_parts(content)
    if not isinstance(content, list):
        raise UserError(f"{where}: its content is {content!r:.40}; write a text or a list of parts")
    parts: list[ContentPart] = []
    for number, part in enumerate(content, start=1):
        parts += _typed(part, media, f"{where}: part {number}")
    return parts


def _typed(part: Any, media: ConversationMedia, where: str) -> list[ContentPart]:
    """What a part with a type says, in our own types."""
    if isinstance(part, str):
        return text_parts(part)
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXTS:
        return text_parts(_text(part.get("text"), "text", where))
    if kind in _IMAGES or kind in _AUDIOS:
        medium: Kind = "image" if kind in _IMAGES else "audio"
        source = {name: value for name, value in part.items() if name != "type" and value}
        if not source:
            return [media.take_given(medium)]
        return [media.add(medium, source.get(kind, source))]
    raise UserError(
        f"{where}: its type is {kind!r:.40}; write one of "
        f"{', '.join((*_TEXTS, *_IMAGES, *_AUDIOS))}"
    )


def _calls(turn: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Calls of tools as OpenAI has them, today's and the first form; taken out of ``turn``."""
    calls = turn.pop("tool_calls", [])
    if not isinstance(calls, list):
        raise UserError(f"{where}: tool_calls is {calls!r:.40}; write a list")
    if "function_call" in turn:
        calls = [*calls, {"function": turn.pop("function_call")}]
    found = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        identity = {"id": call["id"]} if isinstance(call, dict) and call.get("id") else {}
        found.append({**identity, "type": "function", "function": _function(function, where)})
    return found


def _calls_of(content: Any, where: str) -> list[dict[str, Any]]:
    """Calls that a text has as JSON: an object, or a list of them."""
    value = _parsed(content, "a call of a function", where)
    calls = value if isinstance(value, list) else [value]
    return [{"type": "function", "function": _function(call, where)} for call in calls]


def _function(call: Any, where: str) -> dict[str, Any]:
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(name, str) or not name:
        raise UserError(
            f'{where}: a call of a function is {call!r:.40}; write {{"name": …, "arguments": …}}'
        )
    arguments = _parsed(call.get("arguments") or {}, f"arguments of {name}", where)
    if not isinstance(arguments, dict):
        raise UserError(f"{where}: arguments of {name} are {arguments!r:.40}; write an object")
    return {"name": name, "arguments": arguments}


def _tools(value: Any, where: str) -> list[Any]:
    """Tools as OpenAI has them; a function by itself is one."""
    tools = _parsed(value, "tools", where) if value else []
    return [
        {"type": "function", "function": tool}
        if isinstance(tool, dict) and "name" in tool and "function" not in tool
        else tool
        for tool in (tools if isinstance(tools, list) else [tools])
    ]


def _parsed(value: Any, what: str, where: str) -> Any:
    """JSON of a text; what is no text is it already."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: {what} is {value!r:.40}, which is no JSON; correct it") from None


def _text(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {what} is {value!r:.40}; write a text")
    return value


def _joined(row: dict[str, Any], columns: tuple[str, ...]) -> list[Any]:
    """What the columns of one kind hold, taken out of ``row``."""
    values: list[Any] = []
    for column in columns:
        value = row.pop(column, None)
        if isinstance(value, list):
            values += value
        elif value:
            values.append(value)
    return values
