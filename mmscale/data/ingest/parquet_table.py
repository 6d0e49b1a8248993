"""One Parquet file as a table of samples: its row groups, and what its columns are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.data.account import Account, Notice
from mmscale.data.ingest.column_roles import FEATURES, OTHER_NAMES, ColumnRoles, field_word, rename
from mmscale.data.ingest.layout import SourceRow
from mmscale.data.ingest.row_checks import RowChecks
from mmscale.data.ingest.table_row import MEDIA_COLUMNS, check_file, is_empty
from mmscale.data.ingest.table_rows import REPLACED, SPLIT_COLUMN
from mmscale.data.media.format import ending_of
from mmscale.errors import UserError

# What tar headers and padding add to a sample, about.
_TAR_BYTES = 2048
_BATCH_ROWS = 1024
# Rows of a file whose cells are looked at as names of files.
_LOOKED_AT = 100

MEDIA_LEFT_OUT = Notice(
    "columns that hold media and are left out", "--image COL or --audio COL takes one"
)


@dataclass(frozen=True, kw_only=True)
class ParquetTable:
    """One Parquet file. ``key_prefix`` begins every key, ``name_prefix`` those of rows that name
    none; rows count from 0 here.
    """

    path: Path
    size: int
    mtime_ns: int
    key_prefix: str
    name_prefix: str
    has_key: bool
    rows: int
    where_split: str | None
    roles: ColumnRoles = field(compare=False)

    def where(self, row: int) -> str:
        return f"{self.path}: row {row + 1}"

    def default_key(self, row: int) -> str:
        return f"{self.name_prefix}{row + 1:08d}"


@dataclass(frozen=True)
class RowGroup:
    """Row group ``number`` of a file; ``first`` is its first row there, ``bytes`` its estimated
    size in tar.

    ``chosen``: those of its rows that are packed, counted in the file; None: all.
    """

    table: ParquetTable
    number: int
    first: int
    rows: int
    bytes: int
    chosen: NDArray[np.int64] | None = None

    def row(self, position: int) -> int:
        """The row of the file that its ``position``-th packed row is."""
        return self.first + position if self.chosen is None else int(self.chosen[position])


def open_table(
    path: Path,
    bases: tuple[Path, ...],
    *,
    key_prefix: str,
    name_prefix: str,
    where_split: str | None,
    columns: dict[str, str],
    account: Account,
) -> list[RowGroup]:
    """The row groups of a file that hold rows of the split, in order.

    Raises `UserError` naming the file, or a column that nothing can be made of.
    """
    status = check_file(path, path.name, bases, str(path))
    try:
        with open_parquet(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
            sizes = [
                (metadata.row_group(number).num_rows, metadata.row_group(number).total_byte_size)
                for number in range(metadata.num_row_groups)
            ]
            roles = _roles(path, file, schema, columns, account, where_split is not None)
    except UserError:
        raise
    except read_errors() as error:
        raise unreadable(str(path), error) from None
    key_column = _source_of("key", roles, schema.names)
    chosen = None
    if where_split is not None:
        values = column_values(path, SPLIT_COLUMN)
        chosen = np.flatnonzero([str(value) == where_split for value in values])
    table = ParquetTable(
        path=path,
        size=status.size,
        mtime_ns=status.mtime_ns,
        key_prefix=key_prefix,
        name_prefix=name_prefix,
        has_key=key_column is not None,
        rows=sum(rows for rows, _ in sizes),
        where_split=where_split,
        roles=roles,
    )
    return list(_row_groups(table, sizes, chosen))


def _row_groups(
    table: ParquetTable, sizes: list[tuple[int, int]], chosen: NDArray[np.int64] | None
) -> Iterator[RowGroup]:
    first = 0
    for number, (rows, size) in enumerate(sizes):
        if chosen is None:
            mine, taken = None, rows
        else:
            low, high = np.searchsorted(chosen, [first, first + rows])
            mine = chosen[low:high]
            taken = len(mine)
        if taken:
            yield RowGroup(
                table, number, first, taken, size * taken // rows + taken * _TAR_BYTES, mine
            )
        first += rows


def look_through(groups: list[RowGroup], checks: RowChecks) -> None:
    """Show the rows of one file to ``checks``: labels, and the first cells that may name files."""
    table = groups[0].table
    labels = _source_of("label", table.roles, column_names(table.path))
    if labels is not None and labels not in table.roles.classes:
        values = list(column_values(table.path, labels))
        for group in groups:
            for position in range(group.rows):
                row = group.row(position)
                checks.see_label(values[row], table.where(row))
    try:
        with open_parquet(table.path) as file:
            import pyarrow as pa

            texts = [
                column.name
                for column in file.schema_arrow
                if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            ]
            batches = file.iter_batches(_LOOKED_AT, columns=texts, use_threads=False)
            for columns in next(batches, pa.RecordBatch.from_pylist([])).to_pylist():
                columns, _ = table.roles.apply(columns, str(table.path))
                for column, value in columns.items():
                    checks.see_cell(column, value)
    except read_errors():
        pass  # told, with the row, when it is packed


def split_values(paths: list[Path]) -> list[str]:
    """What the column ``split`` of the files says, sorted; empty: it says nothing.

    Raises `UserError` naming the first row that has none, where others have one.
    """
    values: set[str] = set()
    empty = ""
    for path in paths:
        if SPLIT_COLUMN not in column_names(path):
            empty = empty or f"{path}: no column split, which others have; add it"
            continue
        for row, value in enumerate(column_values(path, SPLIT_COLUMN), start=1):
            if is_empty(value):
                empty = empty or f"{path}: row {row}: the column split is empty; name the split"
            else:
                values.add(str(value))
    if values and empty:
        raise UserError(empty)
    return sorted(values)


def column_values(path: Path, column: str) -> Iterator[Any]:
    """The values of one column, row by row."""
    try:
        with open_parquet(path) as file:
            batches = file.iter_batches(_BATCH_ROWS, columns=[column], use_threads=False)
            yield from itertools.chain.from_iterable(
                batch.column(column).to_pylist() for batch in batches
            )
    except read_errors() as error:
        raise unreadable(f"{path}: column {column!r}", error) from None


def table_rows(path: Path) -> Iterator[SourceRow]:
    """All rows of a file that is small, such as of metadata."""
    need_pyarrow(path)
    number = 0
    try:
        with open_parquet(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
                for columns in batch.to_pylist():
                    number += 1
                    yield SourceRow(f"{path}: row {number}", columns, f"{number:08d}")
    except UserError:
        raise
    except read_errors() as error:
        raise unreadable(f"{path}: row {number + 1}", error) from None


def column_names(path: Path) -> list[str]:
    try:
        with open_parquet(path) as file:
            return list(file.schema_arrow.names)
    except read_errors() as error:
        raise unreadable(str(path), error) from None


def _source_of(name: str, roles: ColumnRoles, columns: list[str]) -> str | None:
    """The column that becomes ``name``; None: none does."""
    for column in columns:
        if column not in roles.left_out and roles.renamed.get(column, column) == name:
            return column
    return None


def _roles(
    path: Path, file: Any, schema: Any, options: dict[str, str], account: Account, by_split: bool
) -> ColumnRoles:
    """What the columns are: by the options, their names, the features that Hugging Face's library
    wrote into the schema, and their bytes.
    """
    names: list[str] = schema.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: two columns are called {twice!r}; rename one")
    renamed, left = rename(options, names, str(path))
    for column in left:
        account.note(REPLACED, f"{path.name}: {column}")
    features = _features(schema)
    declared = {
        column: kind
        for column, feature in features.items()
        if column in names and (kind := FEATURES.get(_innermost(feature).get("_type", "")))
    }
    binary = [column.name for column in schema if _holds_binary(column.type)]
    free = [name for name in names if name not in renamed and name not in left]
    for kind in MEDIA_COLUMNS:
        if kind in free or kind in renamed.values():
            continue
        candidates = [
            *(name for name in OTHER_NAMES[kind] if name in binary or name in declared),
            *(name for name in free if declared.get(name) == kind),
        ]
        column = next((name for name in candidates if name in free), None)
        if column is not None:
            renamed[column] = kind
    named: dict[str, str] = {}
    for column in free:
        if column in MEDIA_COLUMNS or column in renamed:
            continue
        if column in declared:
            named[column] = field_word(column)
        elif column in binary:
            if not _begins_with_media(file, column):
                raise UserError(
                    f"{path}: column {column!r} holds bytes ({schema.field(column).type}), which "
                    "JSON cannot; rename it to image or audio, or drop it"
                )
            account.note(MEDIA_LEFT_OUT, f"{path.name}: {column}")
            left.append(column)
    if by_split:
        left.append(SPLIT_COLUMN)
    return ColumnRoles(
        renamed=renamed,
        named=named,
        classes={
            column: classes
            for column, feature in features.items()
            if column in names and (classes := _class_names(feature))
        },
        left_out=frozenset(left),
    )


def _features(schema: Any) -> dict[str, Any]:
    """The features that Hugging Face's `datasets` wrote beside the schema, by column."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _innermost(feature: Any) -> dict[str, Any]:
    """The feature of a list's items; any other as it is."""
    if isinstance(feature, list):
        return _innermost(feature[0]) if len(feature) == 1 else {}
    if isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
        inner = feature.get("feature")
        return inner if isinstance(inner, dict) else {}
    return feature if isinstance(feature, dict) else {}


def _class_names(feature: Any) -> list[str]:
    inner = _innermost(feature)
    names = inner.get("names") if inner.get("_type") == "ClassLabel" else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _begins_with_media(file: Any, column: str) -> bool:
    """Whether the first value of a column is a medium, or several."""
    for batch in file.iter_batches(16, columns=[column], use_threads=False):
        for value in batch.column(column).to_pylist():
            while isinstance(value, list) and value:
                value = value[0]
            if isinstance(value, dict) and value.keys() <= {"bytes", "path"}:
                value = value.get("bytes")
            if value is not None and value != []:
                return isinstance(value, bytes) and ending_of(value) is not None
    return False


def _holds_binary(kind: Any) -> bool:
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    binary = (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
    return binary or any(
        _holds_binary(kind.field(number).type) for number in range(kind.num_fields)
    )


def need_pyarrow(source: Path) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UserError(
            f"{source}: Parquet is read with pyarrow, which is missing; run `pip install "
            "'mmscale[tables]'`"
        ) from None


def open_parquet(path: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile` that streams: neither mapped nor read ahead."""
    import pyarrow.parquet as parquet

    return parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)


def read_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises on damaged files and on values that Python cannot hold."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, ValueError, OverflowError)


def unreadable(where: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160]
    return UserError(
        f"{where}: cannot be read ({type(error).__name__}: {reason}); write the file again"
    )
