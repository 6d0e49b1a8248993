"""Tables of one kind in one folder: each is a split of its own, and its name says which."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from mmscale.data.account import Account
from mmscale.data.index.probe import kind_of
from mmscale.data.ingest.speech_corpus import note_unread
from mmscale.data.ingest.table_row import MEDIA_COLUMNS
from mmscale.errors import UserError

# Files that are opened to learn what a folder holds.
_LOOK = 16
_PART = re.compile(r"[-_.]\d+(-of-\d+)?$")
_SPLIT = re.compile(r"train(ing)?|dev|val(id(ation)?)?|eval(uation)?|test", re.I)


def tables_in(source: Path, endings: tuple[str, ...]) -> list[Path]:
    """``source`` itself, or the files in the folder ``source`` that end so, by name."""
    if not source.is_dir():
        return [source] if source.name.lower().endswith(endings) else []
    with os.scandir(source) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.name.lower().endswith(endings) and entry.name[:1] != "." and entry.is_file()
        ]
    return [source / name for name in sorted(names)]


def fits(source: Path, endings: tuple[str, ...], is_one: Callable[[Path], bool]) -> bool:
    """Whether there are tables, and the first of them all are of that kind."""
    tables = tables_in(source, endings)[:_LOOK]
    return bool(tables) and all(is_one(table) for table in tables)


def split_tables(tables: Iterable[Path], words: str = "") -> dict[str, list[Path]]:
    """By the split that a name says: ``train-00000-of-00002.jsonl`` is of ``train``.

    ``words``: a pattern of what a name has besides. A table that is alone has no split, unless its
    name is that of one.
    """
    splits: dict[str, list[Path]] = {}
    for table in tables:
        name = _PART.sub("", table.name.partition(".")[0])
        if words:
            name = re.sub(rf"(?i)(^|[-_]+)({words})(?=[-_]|$)", "", name).strip("-_")
        splits.setdefault(name, []).append(table)
    if len(splits) == 1 and not _SPLIT.fullmatch(next(iter(splits))):
        return {"": next(iter(splits.values()))}
    return splits


def note_others(source: Path, tables: Iterable[Path], account: Account) -> None:
    """Note the files of the folder ``source`` that are neither ``tables`` nor media."""
    if source.is_dir():
        with os.scandir(source) as entries:
            names = [
                entry.name
                for entry in entries
                if kind_of(entry.name.rpartition(".")[2].lower()) not in MEDIA_COLUMNS
            ]
        note_unread({source / name for name in names} - set(tables), account)


def no_tables(source: Path, what: str) -> UserError:
    """What a layout raises where there is nothing of it."""
    return UserError(f"{source}: no {what} in it; name the file, or the folder that holds it")
