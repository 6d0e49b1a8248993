"""What a layout is: it finds the samples of a source, by split, and says what becomes of the rest.

A layout reads names and tables, never media. It gives each sample as a row of named columns; what
a column means is decided once for all layouts, by `mmscale.data.ingest.table_row.RowReader`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mmscale.data.account import Account


@dataclass(frozen=True, kw_only=True)
class LayoutOptions:
    """What the user said of a source.

    Attributes:
        columns: by ``image``, ``audio``, ``text`` or ``label``: the column that has it; what is not
            named is found by the layout's own names.
        root: the folder that media files may lie in besides that of the source.
        out: the folder that is written; a layout passes over it.
        splits: names of the splits that are wanted, also such that a layout gives only when asked;
            empty: those it gives by itself.
        delimiter: of the columns of a CSV; None: found in the file.
        config: of a source that holds several data sets, the one to take.
        max_file_bytes: most bytes of a cell, or of a line of JSON.
    """

    columns: dict[str, str] = field(default_factory=dict)
    root: Path | None = None
    out: Path | None = None
    splits: tuple[str, ...] = ()
    delimiter: str | None = None
    config: str | None = None
    max_file_bytes: int = 64_000_000


@dataclass(frozen=True)
class SourceRow:
    """One sample: ``columns`` by name, as `RowReader.row` takes them. Paths of media are relative
    to `SplitRows.folder`, or absolute.

    Attributes:
        key: its name, where no column ``key`` has one.
        files: by field, files that are stored as they are.
        named: media beside ``image`` and ``audio``, by the name that their fields begin with: a
            path, bytes, or a list. ``mask`` becomes ``mask.png``.
    """

    where: str
    columns: dict[str, Any]
    key: str
    files: dict[str, Path] = field(default_factory=dict)
    named: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitRows:
    """The samples of one split. ``folder``: what paths of media are relative to, and lie in.

    ``uses``: what becomes of a column or kind of file that `SourceRow` has under another name, in
    words. Complete when ``rows`` have been read.
    """

    folder: Path
    rows: Iterable[SourceRow]
    uses: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitParquet:
    """A split whose rows are read from Parquet as they are packed.

    Attributes:
        folder: what keys are relative to: a file in it begins the keys of its rows with its name.
            ``files[0]`` itself where the keys are numbers alone.
        where_split: only rows whose column ``split`` has this value; None: all.
    """

    folder: Path
    files: list[Path]
    where_split: str | None = None


Split = SplitRows | SplitParquet


class Layout(Protocol):
    """One way in which people store data.

    Attributes:
        name: as ``--layout`` has it.
        summary: what it is and who writes it, one line.
    """

    name: str
    summary: str

    def matches(self, source: Path) -> bool:
        """Whether ``source`` is surely of this layout: by names and first lines, no media."""
        ...

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        """The samples by split; one without a name, ``""``, where the source has no splits.

        Notes in ``account`` what of the source is no sample. Raises `UserError` naming the file or
        row and the remedy.
        """
        ...
