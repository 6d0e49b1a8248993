"""Pictures and clips of one conversation: found by placeholders or typed parts, named in order."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any
from urllib.parse import unquote, urlsplit

from mmscale.data.index.probe import Kind
from mmscale.data.media.format import ending_of
from mmscale.errors import UserError

ContentPart = dict[str, Any]

# A path is no longer; what is can only be the medium itself.
_LONGEST_PATH = 4096
_PLACEHOLDER = re.compile(r"<(image|audio)>")
_DATA_URL = re.compile(r"data:[^,]{0,200},")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.I)
# Where an object has a medium: as a path or address, or as base64.
_PLACES = ("source", "url", "path", "image_url", "audio_url", "image", "audio", "file")
_ENCODED = ("data", "base64", "bytes")


class ConversationMedia:
    """The media of one row, taken one by one.

    Args:
        where: the row, for messages.
        given: by kind, what the row has beside its turns, in the order of their placeholders.

    Attributes:
        taken: by kind, paths or bytes in the order of appearance.
    """

    def __init__(self, where: str, given: dict[Kind, list[Any]]) -> None:
        self._where, self._given = where, given
        self._next: dict[Kind, int] = dict.fromkeys(given, 0)
        self.taken: dict[Kind, list[str | bytes]] = {"image": [], "audio": []}

    def any_given(self) -> bool:
        """Whether the row has media beside its turns, which text can refer to."""
        return any(self._given.values())

    def split_text(self, text: str) -> list[ContentPart]:
        """Parts of a text with ``<image>`` and ``<audio>``, in order.

        The line break after a placeholder goes, or that before one which ends the text: writers put
        it there to divide the two, as the parts now do.
        """
        pieces = _PLACEHOLDER.split(text)
        texts, kinds = pieces[::2], pieces[1::2]
        for number in range(len(kinds)):
            if texts[number + 1].startswith("\n"):
                texts[number + 1] = texts[number + 1][1:]
            elif number + 1 == len(kinds) and not texts[-1]:
                texts[number] = texts[number].removesuffix("\n")
        parts = text_parts(texts[0])
        for kind, after in zip(kinds, texts[1:], strict=True):
            parts += [self.take_given("audio" if kind == "audio" else "image"), *text_parts(after)]
        return parts

    def take_given(self, kind: Kind) -> ContentPart:
        """The next that the row has of a kind. Raises `UserError` if all are taken."""
        number, given = self._next.get(kind, 0), self._given.get(kind, [])
        self._next[kind] = number + 1
        if number >= len(given):
            raise UserError(
                f"{self._where}: placeholder {number + 1} for {kind}, but the row has "
                f"{len(given)}; add the missing one or remove the placeholder"
            )
        return self.add(kind, given[number])

    def add(self, kind: Kind, value: Any) -> ContentPart:
        """One more medium of the conversation: a path, a data URL, bytes as base64, or an object
        with one of these.
        """
        number = len(self.taken[kind])
        label = f"{self._where}: {kind} {number + 1}"
        medium = _medium(value, label)
        self.taken[kind].append(medium)
        if isinstance(medium, bytes):
            ending = ending_of(medium) or ""  # which `RowReader` then refuses
        else:
            ending = medium.rpartition(".")[2].lower()
        return {"type": kind, "field": f"{number}.{ending}"}

    def check_all_taken(self) -> None:
        """Raise `UserError` if the row has media that no placeholder stands for."""
        for kind, given in self._given.items():
            if self._next[kind] < len(given):
                raise UserError(
                    f"{self._where}: {len(given)} of {kind}, but {self._next[kind]} placeholders "
                    f"<{kind}>; add what is missing to the text, or remove the rest"
                )


def text_parts(text: str) -> list[ContentPart]:
    """One part, or none of an empty text."""
    return [{"type": "text", "text": text}] if text else []


def _medium(value: Any, label: str) -> str | bytes:
    # {"source": {"data": …}} and {"image_url": {"url": …}} are two deep; nothing is deeper.
    for _ in range(2):
        if not isinstance(value, dict):
            break
        encoded = next((value[name] for name in _ENCODED if value.get(name)), None)
        if isinstance(encoded, str):
            return _medium_text(encoded, label, encoded=True)
        value = next((value[name] for name in _PLACES if value.get(name)), None)
    if not isinstance(value, str) or not value:
        raise UserError(
            f"{label} is {value!r:.40}; write a path or a data URL (data:image/png;base64,…)"
        )
    return _medium_text(value, label)


def _medium_text(value: str, label: str, encoded: bool = False) -> str | bytes:
    if head := _DATA_URL.match(value):
        if not head.group().endswith(";base64,"):
            raise UserError(f"{label}: a data URL that is not base64; write it as base64")
        return _decoded(value[head.end() :], label)
    if encoded or len(value) > _LONGEST_PATH:
        return _decoded(value, label)
    scheme = _SCHEME.match(value)
    if scheme and scheme.group(1).lower() == "file":
        return unquote(urlsplit(value).path)
    if scheme:
        raise UserError(
            f"{label}: {value[:80]!r} is an address, and none is fetched; download it and write "
            "its path"
        )
    return value


def _decoded(text: str, label: str) -> bytes:
    try:
        data = base64.b64decode(re.sub(r"\s+", "", text), validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{label}: {text[:20]!r}… is no base64; write it again") from None
    if not data:
        raise UserError(f"{label}: of no bytes; write it again")
    return data
