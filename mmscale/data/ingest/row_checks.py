"""What in the rows of a source may not be what its owner means: told, and never changed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mmscale.data.account import Account, Notice
from mmscale.data.index.probe import kind_of
from mmscale.data.ingest.table_row import is_empty

# Rows whose cells are looked at as names of files: each costs a look at the disk.
_LOOKED_AT = 100
_MOST_CLASSES = 100_000

NUMBERS = Notice(
    "classes that look like numbers",
    "they are names like others, in the order 0, 1, 10, 2; write names if you have them",
)
ODD = Notice(
    "classes that are hardly meant as such", "correct them, or remove their samples or folders"
)
UNLABELLED = Notice(
    "rows without a label, beside others that have one",
    "they are packed without json.label; fill the cells or remove the rows",
)
FILES = Notice(
    "columns that name files that exist, and stay text in json",
    "--image COL or --audio COL packs the files",
)

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")
_NO_NAMES = frozenset(("", "nan", "none", "null", "n/a", "na", "<na>", "undefined"))


class RowChecks:
    """Sees the rows of a source, one set after another: `begin`, its rows, `finish`.

    A class or column that several sets have is noted once.
    """

    def __init__(self, account: Account) -> None:
        self._account = account
        self._folders: list[Path] = []
        self._classes: set[str] = set()
        self._files: set[str] = set()
        self._rows = 0
        self._is_labelled = False
        self._unlabelled: list[str] = []

    def begin(self, folders: list[Path]) -> None:
        """A set whose cells may name files in ``folders``."""
        self._folders, self._rows = folders, 0
        self._is_labelled, self._unlabelled = False, []

    def see(self, columns: dict[str, Any], where: str) -> None:
        """One row, as `RowReader` takes it."""
        if "label" in columns:
            self.see_label(columns["label"], where)
        if self._rows < _LOOKED_AT:
            self._rows += 1
            for column, value in columns.items():
                self.see_cell(column, value)

    def see_label(self, label: Any, where: str) -> None:
        """A value of the column ``label``, as it stands there."""
        if is_empty(label):
            self._unlabelled.append(where)
            return
        self._is_labelled = True
        for one in label if isinstance(label, list) else [label]:
            text = str(one)
            if text in self._classes or isinstance(one, dict | list | bool):
                continue
            if len(self._classes) < _MOST_CLASSES:
                self._classes.add(text)
            if _is_odd(text):
                self._account.note(ODD, repr(text))
            elif _NUMBER.fullmatch(text):
                self._account.note(NUMBERS, repr(text))

    def see_cell(self, column: str, value: Any) -> None:
        """A cell that may name a file."""
        if column in ("image", "audio", "text", "key") or column in self._files:
            return
        if isinstance(value, str) and self._names_medium(value):
            self._files.add(column)
            self._account.note(FILES, f"{column}: {value[:80]!r}")

    def finish(self) -> None:
        """Note what only the whole set shows."""
        if self._is_labelled:
            for where in self._unlabelled:
                self._account.note(UNLABELLED, where)

    def _names_medium(self, value: str) -> bool:
        if len(value) > 1024 or kind_of(os.path.splitext(value)[1].lower()[1:]) not in (
            "image",
            "audio",
        ):
            return False
        try:
            return any((folder / value).is_file() for folder in self._folders)
        except (OSError, ValueError):
            return False


def _is_odd(text: str) -> bool:
    """No name: what programs write for nothing, and names with marks that nobody sees."""
    return (
        text.strip().lower() in _NO_NAMES
        or text != text.strip()
        or "\ufeff" in text
        or not text.isprintable()
    )
