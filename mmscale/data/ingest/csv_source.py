"""Rows of CSV and JSON files, read strictly."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmscale.data.account import Account, Notice
from mmscale.data.ingest.layout import LayoutOptions, SourceRow
from mmscale.errors import UserError
from mmscale.messages import report

# In the order in which they are preferred.
DELIMITERS = (",", ";", "\t", "|")
# Rows that say whether a delimiter is one.
_SNIFFED_ROWS = 20

ONE_COLUMN = Notice(
    "tables with a header of one column", "if it has several, name what is between with --delimiter"
)


def csv_rows(table: Path, options: LayoutOptions, account: Account) -> Iterator[SourceRow]:
    """The rows of a CSV or TSV with a header row. Raises `UserError` naming the table and row."""
    limit = csv.field_size_limit(options.max_file_bytes)
    try:
        delimiter = options.delimiter or _delimiter(table)
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, delimiter=delimiter)
            header = next(reader, [])
            if len(set(header)) != len(header) or not all(header):
                raise UserError(f"{table}: the header needs a different name for each column")
            if len(header) == 1:
                account.note(ONE_COLUMN, f"{table.name}: {header[0][:60]!r}")
            # Blank lines are no rows, as for every CSV reader.
            for number, cells in enumerate(filter(None, reader), start=1):
                if len(cells) != len(header):
                    raise UserError(
                        f"{table}: row {number}: {len(cells)} cells, but the header names "
                        f"{len(header)}; put text that holds {_spoken(delimiter)} in quotes"
                    )
                columns = dict(zip(header, cells, strict=True))
                yield SourceRow(f"{table}: row {number}", columns, f"{number:08d}")
    except UnicodeDecodeError:
        raise UserError(f"{table}: not UTF-8; save the table as UTF-8") from None
    except csv.Error as error:
        raise UserError(
            f"{table}: line {reader.line_num}: not valid CSV ({error}); correct the line"
        ) from None
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror}); check its rights") from None
    finally:
        csv.field_size_limit(limit)


def json_rows(table: Path, options: LayoutOptions, account: Account) -> Iterator[SourceRow]:
    """The rows of a file of one JSON object a line. Raises `UserError` naming the table and
    line.
    """
    most = options.max_file_bytes
    try:
        with open(table, "rb") as file:
            number = 0
            while line := file.readline(most + 1):
                number += 1
                where = f"{table}: row {number}"
                if len(line) > most:
                    raise UserError(
                        f"{where}: over media.max_file_bytes={most}; raise the limit or shorten "
                        "the row"
                    )
                if not line.strip():
                    continue
                try:
                    columns = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    raise UserError(
                        f"{where}: not JSON ({error}); write one object a line"
                    ) from None
                yield SourceRow(where, _object(columns, where), f"{number:08d}")
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror}); check its rights") from None


def json_array_rows(table: Path, options: LayoutOptions, account: Account) -> Iterator[SourceRow]:
    """The rows of a file that is one JSON array of objects, or one object a line after all. Raises
    `UserError` naming the table and row.
    """
    try:
        with open(table, "rb") as file:
            first = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        if first == b"{":
            yield from json_rows(table, options, account)
            return
        values = json.loads(table.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{table}: not JSON ({error}); write an array of objects, or one object a line"
        ) from None
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror}); check its rights") from None
    if not isinstance(values, list):
        raise UserError(f"{table}: not an array; write [{{...}}, ...] or one object a line")
    for number, columns in enumerate(values, start=1):
        where = f"{table}: row {number}"
        yield SourceRow(where, _object(columns, where), f"{number:08d}")


# What reads a file that ends so.
TABLES = {
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_array_rows,
}


def _object(columns: Any, where: str) -> dict[str, Any]:
    if not isinstance(columns, dict):
        raise UserError(f"{where}: not an object; write {{...}} with named columns")
    return columns


def _delimiter(table: Path) -> str:
    """What stands between the columns: the expected one, unless another one alone divides every
    row alike.
    """
    expected = "\t" if table.suffix.lower() == ".tsv" else ","
    columns = {delimiter: _columns(table, delimiter) for delimiter in DELIMITERS}
    if columns[expected] > 1:
        return expected
    found = max(DELIMITERS, key=lambda delimiter: columns[delimiter])
    if columns[found] < 2:
        return expected
    report(f"{table}: its columns are divided by {_spoken(found)}; --delimiter decides")
    return found


def _columns(table: Path, delimiter: str) -> int:
    """How many columns each of the first rows has; 0 where they differ."""
    widths = set()
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        try:
            for cells in filter(None, reader):
                widths.add(len(cells))
                if reader.line_num > _SNIFFED_ROWS:
                    break
        except csv.Error:
            return 0
    return widths.pop() if len(widths) == 1 else 0


def _spoken(delimiter: str) -> str:
    return {",": "commas", "\t": "tabs", ";": "semicolons"}.get(delimiter, repr(delimiter))
