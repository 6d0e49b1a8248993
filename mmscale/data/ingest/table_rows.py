"""The rows of a CSV or JSON file with its columns under the names that `RowReader` knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mmscale.data.account import Account, Notice
from mmscale.data.ingest.column_roles import ColumnRoles, rename
from mmscale.data.ingest.csv_source import TABLES
from mmscale.data.ingest.layout import LayoutOptions, SourceRow, SplitRows
from mmscale.data.ingest.table_row import is_empty, plain
from mmscale.errors import UserError

SPLIT_COLUMN = "split"

REPLACED = Notice(
    "columns left out, as an option gives their name to another column",
    "rename them to keep them",
)


def read_table(table: Path, options: LayoutOptions, account: Account) -> Iterator[SourceRow]:
    """The rows of a file of `TABLES`, as they stand there."""
    yield from TABLES[table.suffix.lower()](table, options, account)


def renamed(
    rows: Iterable[SourceRow],
    options: LayoutOptions,
    account: Account,
    table: Path,
    uses: dict[str, str],
) -> list[SourceRow]:
    """The rows with the columns that ``options`` name under the names of their roles.

    Rows are as large as their text: they are held in memory. Raises `UserError` for an option
    that names no column.
    """
    rows = list(rows)
    if not options.columns:
        return rows
    columns = list(dict.fromkeys(column for row in rows for column in row.columns))
    names, left = rename(options.columns, columns, str(table))
    for column in left:
        account.note(REPLACED, f"{table.name}: {column}")
    roles = ColumnRoles(renamed=names, left_out=frozenset(left))
    uses.update((column, roles.use(column)) for column in [*names, *left])
    return [replace(row, columns=roles.apply(row.columns, row.where)[0]) for row in rows]


def by_split_column(
    rows: list[SourceRow], folder: Path, uses: dict[str, str]
) -> dict[str, SplitRows]:
    """The rows by their column ``split``; under ``""`` where there is none, or it is empty."""
    if all(is_empty(row.columns.get(SPLIT_COLUMN)) for row in rows):
        return {"": SplitRows(folder, rows, uses)}
    splits: dict[str, list[SourceRow]] = {}
    for row in rows:
        columns = dict(row.columns)
        value = columns.pop(SPLIT_COLUMN, None)
        if is_empty(value):
            raise UserError(f"{row.where}: the column split is empty; name the row's split")
        split = plain(value, SPLIT_COLUMN, row.where)
        splits.setdefault(split, []).append(replace(row, columns=columns))
    uses = {**uses, SPLIT_COLUMN: "the set that the row is packed into"}
    return {split: SplitRows(folder, of_split, uses) for split, of_split in splits.items()}
