"""Conversations of JSON files: their rows, keys and splits, for all layouts of conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmscale.data.account import Account, Notice
from mmscale.data.ingest.conversation import ConversationForm, conversation_columns
from mmscale.data.ingest.file_splits import no_tables, note_others, split_tables, tables_in
from mmscale.data.ingest.json_rows import first_objects, read_objects
from mmscale.data.ingest.layout import LayoutOptions, SourceRow, Split, SplitRows
from mmscale.data.ingest.speech_corpus import name_columns, sample_key, wanted_splits

ENDINGS = (".json", ".jsonl", ".ndjson")
IDS_TWICE = Notice(
    "rows whose id another row has", "their key ends in the row's number; json.id is as it was"
)

# Rows that show what a file is, and whether any has a medium.
_LOOK = 64

RowColumns = Callable[[dict[str, Any], str], dict[str, Any]]


def is_conversation(table: Path, form: ConversationForm) -> bool:
    """Whether the first rows of a file have turns of that form."""
    rows = first_objects(table, many=2)
    return bool(rows) and all(_has_turns(row, form) for row in rows)


def has_media(table: Path, form: ConversationForm) -> bool:
    """Whether any of the first rows has media beside its turns."""
    columns = (*form.images, *form.audios)
    return any(row.get(column) for row in first_objects(table, many=_LOOK) for column in columns)


def conversation_splits(
    source: Path, form: ConversationForm, options: LayoutOptions, account: Account
) -> dict[str, Split]:
    """What a layout of JSON files gives. ``--image`` and ``--audio`` name columns of media,
    ``--text`` that of the turns, ``--label`` one that becomes ``json.label``.
    """
    label = {role: name for role, name in options.columns.items() if role == "label"}
    form = replace(
        form,
        turns=options.columns.get("text", form.turns),
        images=_named(options, "image", form.images),
        audios=_named(options, "audio", form.audios),
    )
    tables = [
        table
        for table in tables_in(source, ENDINGS)
        if table == source or is_conversation(table, form)
    ]
    if not tables:
        raise no_tables(source, f"JSON with {form.turns!r} in its rows")
    note_others(source, tables, account)
    splits = split_tables(tables)
    return {
        name: SplitRows(
            tables[0].parent,
            table_rows(
                splits[name],
                lambda row, where: _columns(row, form, label, where, account),
                account,
            ),
        )
        for name in wanted_splits(splits, options.splits, source)
    }


def table_rows(tables: list[Path], columns: RowColumns, account: Account) -> Iterator[SourceRow]:
    """Every row of the files. Its key is its ``id``, or its number where it has none."""
    taken: set[str] = set()
    for table in tables:
        before = f"{sample_key(table.stem)}/" if len(tables) > 1 else ""
        for number, row in read_objects(table):
            where = f"{table}: row {number}"
            key = before + _key(row.get("id"), number)
            if key in taken:
                account.note(IDS_TWICE, where)
                key = f"{key}-{number}"
            taken.add(key)
            yield SourceRow(where, columns(row, where), key)


def _columns(
    row: dict[str, Any], form: ConversationForm, label: dict[str, str], where: str, account: Account
) -> dict[str, Any]:
    columns = conversation_columns(row, form, where, account)
    name_columns(columns, label, where, account)
    return columns


def _key(identity: Any, number: int) -> str:
    plain = isinstance(identity, str | int) and not isinstance(identity, bool) and identity != ""
    return sample_key(str(identity)) if plain else f"{number:08d}"


def _has_turns(row: dict[str, Any], form: ConversationForm) -> bool:
    turns = row.get(form.turns)
    return (
        isinstance(turns, list)
        and bool(turns)
        and isinstance(turns[0], dict)
        and form.role in turns[0]
    )


def _named(options: LayoutOptions, kind: str, own: tuple[str, ...]) -> tuple[str, ...]:
    return (options.columns[kind],) if kind in options.columns else own
