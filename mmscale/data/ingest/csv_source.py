"""Rows of CSV and JSON lines files, read strictly."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmscale.config import MediaConfig
from mmscale.data.ingest.table_row import RowReader, TableRow
from mmscale.errors import UserError


def csv_samples(table: Path, media: MediaConfig) -> Iterator[TableRow]:
    """The samples of a CSV with a header row. Raises `UserError` naming the table and row."""
    return _samples(table, _csv_cells(table, media), media)


def json_samples(table: Path, media: MediaConfig) -> Iterator[TableRow]:
    """The samples of a file of one JSON object a line. Raises `UserError` naming the table and
    line.
    """
    return _samples(table, _json_cells(table, media), media)


def _samples(
    table: Path, rows: Iterator[tuple[int, dict[str, Any]]], media: MediaConfig
) -> Iterator[TableRow]:
    reader = RowReader(table.parent, media)
    for number, columns in rows:
        yield reader.row(f"{table}: row {number}", columns, default_key=f"{number:08d}")


def _csv_cells(table: Path, media: MediaConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    limit = csv.field_size_limit(media.max_file_bytes)
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if len(set(header)) != len(header) or not all(header):
                raise UserError(f"{table}: the header needs a different name for each column")
            # Blank lines are no rows, as for every CSV reader.
            for number, cells in enumerate(filter(None, reader), start=1):
                if len(cells) != len(header):
                    raise UserError(
                        f"{table}: row {number}: {len(cells)} cells, but the header names "
                        f"{len(header)}; put text that holds commas in quotes"
                    )
                yield number, dict(zip(header, cells, strict=True))
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


def _json_cells(table: Path, media: MediaConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with open(table, "rb") as file:
            number = 0
            while line := file.readline(media.max_file_bytes + 1):
                number += 1
                if len(line) > media.max_file_bytes:
                    raise UserError(
                        f"{table}: row {number}: over media.max_file_bytes={media.max_file_bytes}; "
                        f"raise the limit or shorten the row"
                    )
                if not line.strip():
                    continue
                try:
                    columns = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError) as error:
                    raise UserError(
                        f"{table}: row {number}: not JSON ({error}); write one object a line"
                    ) from None
                if not isinstance(columns, dict):
                    raise UserError(
                        f"{table}: row {number}: not an object; write {{...}} with named columns"
                    )
                yield number, columns
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror}); check its rights") from None
