"""Manifests of NVIDIA NeMo: one object a line with audio_filepath, duration, text and offset."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmscale.data.account import Account
from mmscale.data.ingest.clip_cut import ClipCut
from mmscale.data.ingest.file_splits import (
    fits,
    no_tables,
    note_others,
    split_tables,
    tables_in,
)
from mmscale.data.ingest.json_rows import first_objects, read_objects
from mmscale.data.ingest.layout import LayoutOptions, SourceRow, Split, SplitRows
from mmscale.data.ingest.speech_corpus import (
    EMPTY_TEXTS,
    check_columns,
    name_columns,
    sample_key,
    wanted_splits,
)
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

_ENDINGS = (".json", ".jsonl", ".ndjson")
_AUDIO = "audio_filepath"


class Nemo:
    """A row with ``offset`` is a part of its file, and is cut when it is packed. Paths are relative
    to the manifest.
    """

    name = "nemo"
    summary = "NeMo manifests: JSON lines with audio_filepath, text, duration, offset"

    def matches(self, source: Path) -> bool:
        return fits(source, _ENDINGS, _is_manifest)

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        check_columns(options, self.name, "audio", "text", "label")
        audio = options.columns.get("audio", _AUDIO)
        tables = [
            table
            for table in tables_in(source, _ENDINGS)
            if _is_manifest(table, audio) or table == source
        ]
        if not tables:
            raise no_tables(source, f"manifest with {audio!r} in its first line")
        note_others(source, tables, account)
        splits = split_tables(tables, "manifests?")
        folder = tables[0].parent
        return {
            name: SplitRows(folder, _rows(splits[name], audio, options, account))
            for name in wanted_splits(splits, options.splits, source)
        }


def _is_manifest(table: Path, audio: str = _AUDIO) -> bool:
    rows = first_objects(table, many=1)
    return bool(rows) and audio in rows[0]


def _rows(
    tables: list[Path], audio: str, options: LayoutOptions, account: Account
) -> Iterator[SourceRow]:
    for table in tables:
        for number, row in read_objects(table):
            where = f"{table}: row {number}"
            columns = dict(row)
            name = _name(columns.pop(audio, None), audio, "shard_id" in row, where)
            name_columns(columns, options.columns, where, account)
            if not str(columns.get("text") or "").strip():
                account.note(EMPTY_TEXTS, where)
                columns["text"] = None
            key = _key(name, table.parent, options.root)
            columns["audio"] = name
            begin_s = _seconds(row, "offset", where)
            length_s = _seconds(row, "duration", where)
            if begin_s is not None:
                end_s = None if length_s is None else begin_s + length_s
                columns["audio"] = ClipCut(name, begin_s, end_s)
                key = f"{key}-{_ms(begin_s)}-{'end' if end_s is None else _ms(end_s)}"
            yield SourceRow(where, columns, key)


def _name(value: Any, audio: str, tarred: bool, where: str) -> str:
    if tarred:
        raise UserError(
            f"{where}: of a tarred data set (it has shard_id); unpack its tars and pack the "
            "manifest that it was made of"
        )
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {audio} is {value!r:.40}; write the path of one file")
    return value


def _seconds(row: dict[str, Any], name: str, where: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"{where}: {name} is {value!r:.40}; write seconds, 0 or more")
    return float(value)


def _key(name: str, folder: Path, root: Path | None) -> str:
    """Of the path, as far as it is within the folder or root."""
    stem = os.path.splitext(name)[0]
    for top in (folder, root):
        if top is not None and Path(stem).is_relative_to(top.absolute()):
            stem = str(Path(stem).relative_to(top.absolute()))
    return sample_key(stem)


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1000):08d}"


LAYOUTS.register("nemo", Nemo())
