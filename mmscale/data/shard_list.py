"""From the ``shards`` list of a config to folders and the shards wanted of each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from mmscale.errors import UserError

MAX_NAMES = 1_000_000

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")


def expand(patterns: list[str]) -> list[str]:
    """Expand ``{a,b}`` and ``{0000..0012}`` (inclusive, zero-padded as written) as a shell does.

    A name that exists as it is written is not expanded. Raises `UserError` naming a pattern that is
    malformed or stands for more than `MAX_NAMES` names.
    """
    return [name for pattern in patterns for name in _expand_one(pattern)]


def group_by_folder(names: list[str]) -> list[tuple[Path, list[str] | None]]:
    """Each folder with the shards wanted of it, or None for all of them; in the order of first mention.

    Raises `UserError` for a name that is neither a folder nor an existing ``.tar`` file, and for a shard that
    is named twice.
    """
    if not names:
        raise UserError("shards: empty; name a folder, a file or a brace pattern of tar shards")
    folders: dict[Path, Path] = {}
    wanted: dict[Path, list[str | None]] = {}
    for name in names:
        path = Path(name)
        whole = path.is_dir()
        if not whole and path.suffix != ".tar":
            raise UserError(
                f"{name}: neither a folder nor a .tar file; name shards on a local or mounted disk"
            )
        if not whole and not path.is_file():
            raise UserError(f"{name}: no such shard; check the path")
        folder = path if whole else path.parent
        place = folder.resolve()
        folders.setdefault(place, folder)
        shard, before = None if whole else path.name, wanted.setdefault(place, [])
        if before and (whole or None in before or shard in before):
            raise UserError(f"{name}: named twice; name a folder or its shards, and each only once")
        before.append(shard)
    return [(folders[place], _all_or_some(shards)) for place, shards in wanted.items()]


def _all_or_some(shards: list[str | None]) -> list[str] | None:
    return None if None in shards else [shard for shard in shards if shard is not None]


def _expand_one(pattern: str) -> Iterator[str]:
    if not any(mark in pattern for mark in "{}") or Path(pattern).exists():
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
        raise UserError(f"{pattern}: braces do not pair up or are nested; write {{a,b}} or {{0000..0012}}")
    _check_count(count, pattern)
    for chosen in itertools.product(*choices):
        yield "".join(itertools.chain(*zip(literals, chosen, strict=False))) + literals[-1]


def _choices(inside: str, pattern: str) -> list[str]:
    if "," in inside:
        return inside.split(",")
    match = _RANGE.fullmatch(inside)
    if match is None:
        raise UserError(f"{pattern}: {{{inside}}} is no brace pattern; write {{a,b}} or {{0000..0012}}")
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise UserError(f"{pattern}: the range {{{inside}}} runs backwards; write the smaller number first")
    _check_count(last - first + 1, pattern)
    # As in a shell, a leading zero on either side pads all numbers to one width.
    padded = any(len(number) > 1 and number.startswith("0") for number in match.groups())
    width = max(len(match[1]), len(match[2])) if padded else 0
    return [f"{number:0{width}d}" for number in range(first, last + 1)]


def _check_count(count: int, pattern: str) -> None:
    if count > MAX_NAMES:
        raise UserError(f"{pattern}: stands for {count} names (limit {MAX_NAMES}); name the folder instead")
