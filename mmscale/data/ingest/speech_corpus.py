"""What the layouts of speech have in common: what may be left out, and how samples are called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmscale.data.account import Account, Notice
from mmscale.data.index.probe import kind_of
from mmscale.data.ingest.layout import LayoutOptions
from mmscale.errors import UserError

EMPTY_TEXTS = Notice(
    "clips whose text is empty", "they are packed without a txt; correct the table if they have one"
)
CLIPS_ALONE = Notice("clips without a transcript, left out", "add lines for them")
TEXTS_ALONE = Notice(
    "transcripts without a clip, left out", "restore the files or remove the lines"
)
FILES_UNREAD = Notice("files beside the clips that are not read", "nothing of them is packed")
COLUMNS_REPLACED = Notice(
    "columns whose name --text or --label gives to another, left out", "rename them"
)
ARCHIVES = Notice("archives that are not unpacked, left out", "unpack them where they are")

_ARCHIVE = re.compile(r"\.(tar|tgz|zip|tar\.\w+|gz)$", re.I)


def sample_key(name: str) -> str:
    """A key that shards can hold of an id or path: relative, without dots or control characters."""
    plain = re.sub(r"[\x00-\x1f\x7f.]", "_", name.replace("\\", "/"))
    return "/".join(part for part in plain.split("/") if part.strip("_")) or "_"


def sounds_in(folder: Path) -> dict[str, Path]:
    """The clips of one folder by name without ending. Raises `UserError` if two have one name."""
    clips: dict[str, Path] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        stem, _, ending = entry.name.rpartition(".")
        if kind_of(ending.lower()) != "audio" or not stem or stem.startswith("."):
            continue
        if stem in clips:
            raise UserError(f"{entry.path}: beside {clips[stem].name}; keep one of them")
        clips[stem] = folder / entry.name
    return clips


def note_unread(paths: Iterable[Path], account: Account) -> None:
    """Note files that a layout does not open, archives by themselves."""
    for path in sorted(paths):
        if path.is_file() and not path.name.startswith("."):
            account.note(ARCHIVES if _ARCHIVE.search(path.name) else FILES_UNREAD, path.name)


def subfolders(folder: Path) -> list[Path]:
    """The folders in ``folder`` by name, hidden ones apart; none where there is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name[:1] != "." and entry.is_dir()]
    return [folder / name for name in sorted(names)]


def check_columns(options: LayoutOptions, layout: str, *roles: str) -> None:
    """Raise `UserError` for an option that names a column where the layout has none to choose."""
    for role, column in options.columns.items():
        if role not in roles:
            known = ", ".join(f"--{name}" for name in roles) or "none of these options"
            raise UserError(
                f"--{role} {column}: not for the layout {layout}, which takes {known}; leave it out"
            )


def name_columns(
    columns: dict[str, Any], named: dict[str, str], where: str, account: Account
) -> None:
    """Give the columns ``text`` and ``label`` what the user's columns of ``named`` hold."""
    for role in ("text", "label"):
        column = named.get(role, role)
        if column != role:
            if role in columns:
                account.note(COLUMNS_REPLACED, f"{role!r} of {where}")
            columns[role] = columns.pop(column, None)


def wanted_splits(known: Iterable[str], asked: tuple[str, ...], source: Path) -> list[str]:
    """``asked`` if anything is, all that are known if not. Raises `UserError` for one that is not
    there.
    """
    known = list(known)
    for name in asked:
        if name not in known:
            raise UserError(f"{source}: has no split {name!r}; it has {', '.join(known)}")
    return list(asked) or known
