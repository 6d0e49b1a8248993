"""From the ``shards`` list of a config to folders, local or remote, and the shards wanted of
each.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mmscale.data.storage.url import check_url, is_url, split_url
from mmscale.errors import UserError

MAX_NAMES = 1_000_000

_MAX_LIST_BYTES = 1 << 28

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def expand(patterns: list[str]) -> list[str]:
    """Expand lists and braces: ``@FILE`` (see `read_list`), ``{a,b}`` and ``{0000..0012}`` as a
    shell does.

    A range is inclusive and zero-padded as written. A name that exists as it is written is not
    expanded.

    Raises `UserError` naming a pattern that is malformed or stands for more than `MAX_NAMES` names.
    """
    return [name for pattern in patterns for name in _expand_one(pattern)]


def read_list(path: Path) -> list[str]:
    """The entries of a text file: one a line, ``#`` starts a comment line; relative names are
    relative to it.

    Raises `UserError` naming the file or the line.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_LIST_BYTES + 1)
        lines = content.decode("utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"@{path}: the list cannot be read ({error.strerror}); check the path"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"@{path}: the list is not UTF-8; save it as plain text") from None
    if len(content) > _MAX_LIST_BYTES:
        raise UserError(
            f"@{path}: the list is over {_MAX_LIST_BYTES} bytes; name folders instead of shards"
        )
    entries = []
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if entry.startswith("@"):
            raise UserError(
                f"@{path}: line {number} names another list; name that one in the config too"
            )
        entries.append(entry if is_url(entry) else os.path.join(path.parent, entry))
    if not entries:
        raise UserError(f"@{path}: the list is empty; write one folder, shard or pattern a line")
    return entries


def group_by_folder(names: list[str]) -> list[tuple[Path | str, list[str] | None]]:
    """Each folder with the shards wanted of it, or None for all of them; in the order of first
    mention.

    A remote folder is given as its URL.

    Raises `UserError` for a name that is no URL that is taken, and neither a folder nor an existing
    ``.tar`` file, and for a shard that is named twice.
    """
    if not names:
        raise UserError("shards: empty; name a folder, a file or a brace pattern of tar shards")
    folders: dict[Path | str, Path | str] = {}
    wanted: dict[Path | str, list[str | None]] = {}
    for name in names:
        folder, shard = split_url(name) if is_url(name) else _split_path(name)
        place = folder.resolve() if isinstance(folder, Path) else folder
        folders.setdefault(place, folder)
        before = wanted.setdefault(place, [])
        if before and (shard is None or None in before or shard in before):
            raise UserError(f"{name}: named twice; name a folder or its shards, and each only once")
        before.append(shard)
    return [(folders[place], _all_or_some(shards)) for place, shards in wanted.items()]


def _split_path(name: str) -> tuple[Path, str | None]:
    """(folder, name of the shard or None for the folder itself)."""
    path = Path(name)
    if os.path.isdir(name):
        return path, None
    if path.suffix.lower() != ".tar":
        raise UserError(f"{name}: neither a folder nor a .tar file; check the name")
    if not os.path.isfile(name):
        raise UserError(f"{name}: no such shard; check the path")
    return path.parent, path.name


def _all_or_some(shards: list[str | None]) -> list[str] | None:
    return None if None in shards else [shard for shard in shards if shard is not None]


def _expand_one(pattern: str) -> Iterator[str]:
    if is_url(pattern):
        check_url(pattern)  # before any message repeats it
    if os.path.exists(pattern):
        yield pattern
        return
    if pattern.startswith("@"):
        if is_url(pattern[1:]):
            raise UserError("@URL: a list is a local file; download it and name that")
        yield from expand(read_list(Path(pattern[1:])))
        return
    if not any(mark in pattern for mark in "{}"):
        yield pattern
        return
    literals: list[str] = []
    choices: list[list[str]] = []
    at, count = 0, 1
    for match in _BRACES.finditer(pattern):
        literals.append(pattern[at : match.start()])
        choices.append(_choices(match[1], pattern))
        at = match.end()
        count *= len(choices[-1])
    literals.append(pattern[at:])
    if any(mark in literal for literal in literals for mark in "{}"):
        raise UserError(
            f"{pattern}: braces do not pair up or are nested; write {{a,b}} or {{0000..0012}}"
        )
    _check_count(count, pattern)
    for chosen in itertools.product(*choices):
        yield "".join(itertools.chain(*zip(literals, chosen, strict=False))) + literals[-1]


def _choices(inside: str, pattern: str) -> list[str]:
    if "," in inside:
        return inside.split(",")
    match = _RANGE.fullmatch(inside)
    if match is None:
        raise UserError(
            f"{pattern}: {{{inside}}} is no brace pattern; write {{a,b}} or {{0000..0012}}"
        )
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise UserError(
            f"{pattern}: the range {{{inside}}} runs backwards; write the smaller number first"
        )
    _check_count(last - first + 1, pattern)
    # As in a shell, a leading zero on either side pads all numbers to one width.
    padded = any(len(number) > 1 and number.startswith("0") for number in match.groups())
    width = max(len(match[1]), len(match[2])) if padded else 0
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def _check_count(count: int, pattern: str) -> None:
    if count > MAX_NAMES:
        raise UserError(
            f"{pattern}: stands for {count} names (limit {MAX_NAMES}); name the folder instead"
        )
