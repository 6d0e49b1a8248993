"""What `pack` turns into shards: a folder of media, or a table (CSV, JSON lines) that names media files."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmscale.config import MediaConfig
from mmscale.data.probe import ENDINGS, Kind, kind_of
from mmscale.errors import UserError

MEDIA_COLUMNS: tuple[Kind, ...] = ("image", "audio")
TEXT_COLUMNS = {"text": "txt", "cls": "cls"}


@dataclass
class Row:
    """One sample to be packed. Files are read only when the sample is written."""

    where: str  # for messages: the folder and stem, or the table and row
    key: str
    files: dict[str, Path] = field(default_factory=dict)  # by WebDataset field
    data: dict[str, bytes] = field(default_factory=dict)  # by WebDataset field


def read_source(source: Path, media: MediaConfig, out: Path) -> list[Row]:
    """All samples of ``source``, in the order of the folder (sorted) or table; ``out`` inside it is skipped.

    Every named file is known to exist and to have at most ``media.max_file_bytes``. Tables are held in
    memory; media are not.

    Raises `UserError` naming the file, and for tables the row, with the remedy.
    """
    if source.is_dir():
        rows = list(_folder(source, media, out))
    elif not source.exists():
        raise UserError(f"{source}: no such folder or file; check the path")
    elif source.suffix.lower() == ".csv":
        rows = list(_table(source, _csv_rows(source, media), media))
    elif source.suffix.lower() in (".jsonl", ".ndjson"):
        rows = list(_table(source, _json_rows(source, media), media))
    else:
        raise UserError(f"{source}: not a kind of source that is read; use a folder, a .csv or a .jsonl file")
    if not rows:
        raise UserError(f"{source}: holds no samples; known endings: {', '.join(sum(ENDINGS.values(), ()))}")
    first: dict[str, str] = {}
    for row in rows:
        if row.key in first:
            raise UserError(
                f"{row.where}: key {row.key!r} is also that of {first[row.key]}; give each its own"
            )
        first[row.key] = row.where
    return rows


def _folder(source: Path, media: MediaConfig, out: Path) -> Iterator[Row]:
    """Files of one folder and stem are one sample; the first sub-folder is its label, as in ImageFolder."""
    base, skipped = source.resolve(), out.resolve()
    for directory, subfolders, names in os.walk(source):
        here = Path(directory)
        subfolders[:] = sorted(
            name for name in subfolders if not name.startswith(".") and (here / name).resolve() != skipped
        )
        stems: dict[str, Row] = {}
        for name in sorted(names):
            stem, _, ending = name.rpartition(".")
            ending = ending.lower()
            if not stem or name.startswith(".") or kind_of(ending) is None:
                continue
            # A dot would end the key, and what follows become part of the field.
            key = (here.relative_to(source) / stem.replace(".", "_")).as_posix()
            row = stems.setdefault(stem, Row(where=str(here / stem), key=key))
            if ending in row.files:
                raise UserError(
                    f"{here / name}: its sample has {row.files[ending].name!r} too; rename one of them"
                )
            _check_file(here / name, base, media, str(here / name))
            row.files[ending] = here / name
        label = here.relative_to(source).parts[:1]
        for row in stems.values():
            if not any(kind_of(ending) in (*MEDIA_COLUMNS, "text") for ending in row.files):
                continue  # a json or cls file on its own describes the folder, not a sample
            if label and "json" not in row.files:
                row.data["json"] = _encode({"label": label[0]}, row.where)
            yield row


def _table(table: Path, cells: Iterator[tuple[int, dict[str, Any]]], media: MediaConfig) -> Iterator[Row]:
    base = table.parent.resolve()
    for number, columns in cells:
        where = f"{table}: row {number}"
        columns = {name: value for name, value in columns.items() if value is not None and value != ""}
        if not columns:
            raise UserError(f"{where}: empty; remove the row")
        row = Row(where, key=_plain(columns.pop("key", f"{number:08d}"), "key", where))
        for kind in MEDIA_COLUMNS:
            if kind in columns:
                name = _plain(columns.pop(kind), kind, where)
                path = table.parent / name
                ending = path.suffix.lower().removeprefix(".")
                if kind_of(ending) != kind:
                    raise UserError(
                        f"{where}: {kind} {name!r} does not end in {', '.join(ENDINGS[kind])}; convert it"
                    )
                _check_file(path, base, media, f"{where}: {kind} {name!r}")
                row.files[ending] = path
        for column, ending in TEXT_COLUMNS.items():
            if column in columns:
                row.data[ending] = _utf8(_plain(columns.pop(column), column, where), where)
        if columns:
            row.data["json"] = _encode(columns, where)
        if not row.files and not row.data:
            raise UserError(f"{where}: nothing but a key; remove the row")
        yield row


def _csv_rows(table: Path, media: MediaConfig) -> Iterator[tuple[int, dict[str, Any]]]:
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
                        f"{table}: row {number}: {len(cells)} cells, but the header names {len(header)}; "
                        f"put text that holds commas in quotes"
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


def _json_rows(table: Path, media: MediaConfig) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with open(table, "rb") as file:
            number = 0
            while line := file.readline(media.max_file_bytes + 1):
                number += 1
                if len(line) > media.max_file_bytes:
                    raise UserError(
                        f"{table}: row {number}: over media.max_file_bytes={media.max_file_bytes}"
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
                    raise UserError(f"{table}: row {number}: not an object; write {{...}} with named columns")
                yield number, columns
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror}); check its rights") from None


def _check_file(path: Path, base: Path, media: MediaConfig, where: str) -> None:
    """Refuse a file that is missing, too large, or outside ``base`` (resolved) by ``..``, root or link."""
    try:
        inside = path.resolve(strict=True).is_relative_to(base)
        size = path.stat().st_size
    except (OSError, ValueError, RuntimeError):  # a NUL in the name, a loop of links
        raise UserError(f"{where}: no such file; correct the name or restore the file") from None
    if not inside:
        raise UserError(f"{where}: lies outside {base}; copy it into that folder")
    if not path.is_file():
        raise UserError(f"{where}: not a plain file; name a file")
    if size > media.max_file_bytes:
        raise UserError(
            f"{where}: {size} bytes are over media.max_file_bytes={media.max_file_bytes}; "
            f"raise the limit or remove the file"
        )


def _plain(value: Any, column: str, where: str) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: {column} is {json.dumps(value)[:40]}; write a string")


def _encode(value: dict[str, Any], where: str) -> bytes:
    return _utf8(json.dumps(value, ensure_ascii=False), where)


def _utf8(text: str, where: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half of a surrogate pair, which is no text; correct it") from None
