"""Which words in the names of files and folders say that something is a split of a data set."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mmscale.data.account import Account, Notice
from mmscale.errors import UserError

SPLIT_NAMES = frozenset(
    ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval",
     "evaluation")
)  # fmt: skip
# A file that `datasets` wrote: train-00000-of-00004.parquet, also with a hash.
_NUMBERED = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")
_NUMBER = re.compile(r"[-._ 0-9]+$")
_BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")
# What can name a folder for its shards, and be read in every command.
_FOLDER_NAME = re.compile(r"\w[\w.-]{0,63}")

MIXED = Notice(
    "files named like a split beside others that are not: all are one set",
    "move the others away, or rename them as splits",
)


def is_split(name: str) -> bool:
    """Whether a folder of that name is a split: ``train``, ``val2017``, ``Test_1``."""
    return _NUMBER.sub("", name.lower()) in SPLIT_NAMES


def split_in(stem: str) -> str:
    """The split that a file's name, without its ending, says; empty: none."""
    numbered = _NUMBERED.fullmatch(stem)
    if numbered:
        return numbered.group(1)
    return next((word for word in _BETWEEN_WORDS.split(stem) if is_split(word)), "")


def divide(files: Iterable[tuple[Path, str]], account: Account) -> dict[str, list[Path]]:
    """Files by the split that each is said to be of; all under ``""`` where that is none.

    Raises `UserError` where several splits have files beside them that are of none.
    """
    by_split: dict[str, list[Path]] = {}
    for file, split in files:
        by_split.setdefault(split, []).append(file)
    # part-00000-of-00004 is numbered, but no split: some name must be one that people use.
    if not any(_is_known(name) for name in by_split):
        return {"": sorted(file for group in by_split.values() for file in group)}
    others = by_split.pop("", [])
    if others and len(by_split) > 1:
        raise UserError(
            f"{others[0]}: of no split, beside {', '.join(sorted(by_split))}; rename it, or move "
            "it away"
        )
    if others:
        for other in others:
            account.note(MIXED, other.name)
        return {"": sorted([*others, *next(iter(by_split.values()))])}
    return dict(sorted(by_split.items()))


def _is_known(name: str) -> bool:
    return any(is_split(word) for word in _BETWEEN_WORDS.split(name.replace("_", "-")))


def check_split_names(names: Iterable[str], source: Path) -> None:
    """Raise `UserError` for names that cannot be folders beside each other."""
    folders: dict[str, str] = {}
    for name in names:
        if name and (not _FOLDER_NAME.fullmatch(name) or name == "index"):
            raise UserError(
                f"{source}: the split {name!r} cannot be the name of a folder; use letters and "
                "digits, or --merge-splits"
            )
        other = folders.setdefault(name.lower(), name)
        if other != name:
            raise UserError(
                f"{source}: two splits are called {other!r} and {name!r}; write them alike"
            )
