"""What the columns of a table are: by their names, by the options, and by what a schema says."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmscale.errors import UserError

if TYPE_CHECKING:
    from mmscale.data.index.probe import Kind

# Options that say which column it is, and the name that `RowReader` knows it by.
OPTIONS = ("image", "audio", "text", "label")

# Names that people give to the column of a kind, and types of features of the `datasets` library.
OTHER_NAMES: dict[Kind, tuple[str, ...]] = {"image": ("img", "images"), "audio": ("audios",)}
FEATURES: dict[str, Kind] = {"Image": "image", "Audio": "audio"}

# What becomes of a column of that name.
USES = {
    "image": "the picture: png, jpg, … (several: 0.png, 1.png, …)",
    "audio": "the clip: wav, flac, … (several: 0.wav, 1.wav, …)",
    "text": "txt (several: 0.txt, 1.txt, …)",
    "cls": "cls",
    "key": "the sample's name",
}


@dataclass(frozen=True)
class ColumnRoles:
    """What is done to the columns of a row before `RowReader` sees them.

    Attributes:
        renamed: new names by old ones: ``{"photo": "image"}``.
        named: media beside them, by column: what their fields begin with.
        classes: names of the classes that a column holds the numbers of.
        left_out: columns that are not packed.
    """

    renamed: dict[str, str] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()

    def apply(self, columns: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """(columns, named media) as `layout.SourceRow` has them."""
        taken: dict[str, Any] = {}
        named: dict[str, Any] = {}
        for column, value in columns.items():
            if column in self.left_out:
                continue
            if column in self.named:
                named[self.named[column]] = value
                continue
            name = self.renamed.get(column, column)
            if column in self.classes and value is not None:
                names = self.classes[column]
                if name == "label" and isinstance(value, int) and value >= 0:
                    taken.setdefault("cls", value)
                value = _class_name(value, names, f"{where}: column {column!r}")
            taken[name] = value
        return taken, named

    def use(self, column: str) -> str:
        """What becomes of a column, in words."""
        if column in self.left_out:
            return "left out"
        if column in self.named:
            return f"{self.named[column]}.png, {self.named[column]}.wav, …"
        name = self.renamed.get(column, column)
        words = USES.get(name, f"json.{name}")
        if column in self.classes:
            words += " (name), cls (number)" if name == "label" else " (name)"
        return words


def rename(options: dict[str, str], columns: list[str], where: str) -> tuple[dict[str, str], list]:
    """(renamed, left out) for the columns that the options name.

    A column that has the name which an option gives to another one is left out. Raises
    `UserError` for a column that is not there.
    """
    renamed: dict[str, str] = {}
    for role, column in options.items():
        if column not in columns:
            raise UserError(
                f"{where}: no column {column!r} for --{role}; it has {', '.join(columns[:20])}"
            )
        if column != role:
            if column in renamed:
                raise UserError(
                    f"{where}: column {column!r} is named by --{renamed[column]} and --{role}; "
                    "one column is one of them"
                )
            renamed[column] = role
    left = [role for column, role in renamed.items() if role in columns and role not in renamed]
    return renamed, left


def field_word(column: str) -> str:
    """A column's name as the start of a field."""
    return re.sub(r"[^a-z0-9_-]", "_", column.lower())[:40] or "_"


def _class_name(value: Any, names: list[str], where: str) -> Any:
    if isinstance(value, list):
        return [_class_name(item, names, where) for item in value]
    if value is None or (isinstance(value, int) and value == -1):
        return None  # as Hugging Face datasets write a class that nobody told
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise UserError(f"{where} is {value!r}, but has {len(names)} classes; correct it")
    return names[value]
