"""The objects of JSON files, one after another: a list, JSON lines, or a list within an object.

Only one object is in memory at a time, so a list of gigabytes is as good as lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from mmscale.data.ingest.text_lines import read_lines
from mmscale.errors import UserError

# One object: a conversation whose pictures stand in it, or the segments of a long recording.
MAX_ROW_BYTES = 1 << 28

_CHUNK = 1 << 20
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
# A word that the end of what is read so far may have cut: -Infinity, \ud800.
_WORD = 16


def read_objects(path: Path, member: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects by number: of a list their place in it, of lines the line, both from 1.

    With ``member`` the file is one object, and that list of it is read. Raises `UserError` naming
    the file and row.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            stream = _Stream(path, file)
            first = stream.peek()
            if member:
                stream.enter(member)
            if member or first == "[":
                yield from stream.objects()
                return
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    for number, line in read_lines(path, MAX_ROW_BYTES):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: row {number}: not JSON ({error}); write one object a line, or one list"
            ) from None
        yield number, _checked(value, path, number)


def first_objects(path: Path, member: str = "", many: int = 8) -> list[dict[str, Any]]:
    """The first objects of a file; none if it is not of such a kind."""
    try:
        return [row for _, row in islice(read_objects(path, member), many)]
    except UserError:
        return []


def _checked(value: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: row {number}: not an object; write {{...}} with named values for each sample"
        )
    return value


class _Stream:
    """JSON text that is read as it is needed. ``at``: what is before it is done with."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._text, self._at = "", 0

    def objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Those of the list that begins here."""
        self._take("[", "row 1")
        number = 1
        while self.peek() != "]":
            where = f"row {number}"
            if number > 1:
                self._take(",", where)
            self.peek()
            yield number, _checked(self._value(where), self._path, number)
            number += 1

    def enter(self, member: str) -> None:
        """Move to the value of a member of the object that begins here."""
        self._take("{", "its start")
        while self.peek() == '"':
            name = self._value("a name")
            self._take(":", repr(name)[:40])
            self.peek()
            if name == member:
                return
            self._value(repr(name)[:40])
            if self.peek() == ",":
                self._take(",", name)
                self.peek()
        raise UserError(f"{self._path}: no list {member!r} in it; check that it is the right file")

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._at = space.end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _take(self, mark: str, where: str) -> None:
        if (found := self.peek()) != mark:
            raise self._broken(where, f"{found!r} where {mark!r} must be")
        self._at += 1

    def _value(self, where: str) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                raise self._broken(where, "nested too deep") from None
            except json.JSONDecodeError as error:
                # What is wrong at the end may be only half of what follows.
                cut = error.pos + _WORD >= len(self._text) or "Unterminated" in error.msg
                if len(self._text) - self._at > MAX_ROW_BYTES:
                    raise self._broken(where, f"over {MAX_ROW_BYTES} characters") from None
                if not cut or not self._more():
                    raise self._broken(where, error.msg) from None
            except ValueError as error:  # a number of more digits than Python takes
                raise self._broken(where, str(error)) from None
            else:
                if end < len(self._text) or not self._more():
                    self._at = end
                    return value

    def _more(self) -> bool:
        """Read as much again as is waiting, so that no value is tried often."""
        waiting = self._text[self._at :]
        more = self._file.read(max(_CHUNK, len(waiting)))
        self._text, self._at = waiting + more, 0
        return bool(more)

    def _broken(self, where: str, reason: str) -> UserError:
        return UserError(
            f"{self._path}: {where}: not JSON ({reason}); correct it or copy the file again, whole"
        )
