"""Lines of the text files that corpora describe themselves by, read strictly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmscale.errors import UserError

# No transcript is as long; what is holds no lines.
MAX_LINE_BYTES = 1 << 20


def read_lines(path: Path, most: int = MAX_LINE_BYTES) -> Iterator[tuple[int, str]]:
    """Number from 1 and text, without its end, of each line that is not blank.

    Raises `UserError` naming the file and line.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while raw := file.readline(most + 1):
                number += 1
                if len(raw) > most:
                    raise UserError(
                        f"{path}: line {number}: over {most} bytes; check that it is the right file"
                    )
                line = _text(path, number, raw).rstrip("\r\n")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from None


def read_ids(path: Path) -> dict[str, tuple[int, str]]:
    """By the first word of each line: the line's number and the rest of it, stripped.

    Raises `UserError` also for a word that begins two lines.
    """
    lines: dict[str, tuple[int, str]] = {}
    for number, line in read_lines(path):
        name, *rest = line.split(maxsplit=1)
        if name in lines:
            raise UserError(
                f"{path}: line {number}: {name} is also on line {lines[name][0]}; keep one of them"
            )
        lines[name] = number, rest[0].strip() if rest else ""
    return lines


def _text(path: Path, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: line {number}: not UTF-8; save the file as UTF-8") from None
