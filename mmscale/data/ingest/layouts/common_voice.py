"""Mozilla Common Voice: LANG/{train,dev,test,validated,…}.tsv and LANG/clips/*.mp3."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmscale.data.account import Account, Notice
from mmscale.data.ingest.layout import LayoutOptions, SourceRow, Split, SplitRows
from mmscale.data.ingest.speech_corpus import (
    EMPTY_TEXTS,
    check_columns,
    name_columns,
    note_unread,
    sample_key,
    subfolders,
    wanted_splits,
)
from mmscale.data.ingest.text_lines import read_lines
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

_SPLITS = ("train", "dev", "test")
# They hold the clips of the splits once more, or what nobody has voted for.
_WHEN_ASKED = ("validated", "other", "invalidated")
OTHER_CLIPS = Notice(
    "clips that no row of the splits names, left out",
    "--split validated, other or invalidated takes those of that table",
)
OTHER_TABLES = Notice("tables that are no splits, left out", "--split NAME takes one of them")

_COUNTS = ("up_votes", "down_votes")
# A tab inside of a cell is written as a backslash and a tab.
_TAB = re.compile(r"(?<!\\)((?:\\\\)*)\t")
_ESCAPED = re.compile(r"\\([\\\t\"])")


class CommonVoice:
    """Rows of all languages in the source are one set; ``json.locale`` tells them apart."""

    name = "common_voice"
    summary = "Common Voice: cv-corpus-*/LANG/ with train.tsv, dev.tsv, test.tsv and clips/*.mp3"

    def matches(self, source: Path) -> bool:
        return bool(_languages(source))

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        check_columns(options, self.name, "text", "label")
        languages = _languages(source)
        if not languages:
            raise UserError(
                f"{source}: no clips/ beside {_SPLITS[0]}.tsv or validated.tsv in it; name the "
                "folder of a language, or that of cv-corpus-*"
            )
        tables = {
            name: found
            for name in (*_SPLITS, *_WHEN_ASKED)
            if (found := [path for one in languages if (path := one / f"{name}.tsv").is_file()])
        }
        chosen = wanted_splits(tables, options.splits, source)
        if not options.splits:
            chosen = [name for name in chosen if name in _SPLITS] or ["validated"]
        if not all(name in tables for name in chosen):
            raise UserError(f"{source}: has neither train.tsv nor validated.tsv; --split other?")
        _note_rest(source, languages, tables, chosen, account)
        return {
            name: SplitRows(source, _rows(source, tables[name], options.columns, account))
            for name in chosen
        }


def _languages(source: Path) -> list[Path]:
    folders = [source] if (source / "clips").is_dir() else subfolders(source)
    return [
        folder
        for folder in folders
        if (folder / "clips").is_dir()
        and any((folder / f"{name}.tsv").is_file() for name in (*_SPLITS, *_WHEN_ASKED))
    ]


def _note_rest(
    source: Path,
    languages: list[Path],
    tables: dict[str, list[Path]],
    chosen: list[str],
    account: Account,
) -> None:
    for language in languages:
        named: set[str] = set()
        unread = set(language.iterdir())
        for name, paths in tables.items():
            for path in paths:
                if path.parent != language:
                    continue
                unread.discard(path)
                if name in chosen:
                    named.update(row.clip for row in _table(path))
                else:
                    account.note(OTHER_TABLES, _relative(path, source))
        note_unread(unread, account)
        with os.scandir(language / "clips") as entries:
            rest = {entry.name for entry in entries if entry.name[:1] != "."} - named
        if rest:
            example = _relative(language / "clips" / min(rest), source)
            account.note(OTHER_CLIPS, example, len(rest))


def _rows(
    source: Path, tables: list[Path], named: dict[str, str], account: Account
) -> Iterator[SourceRow]:
    named = {"text": "sentence", **named}
    for table in tables:
        language = table.parent
        first: dict[str, str] = {}
        for row in _table(table):
            if row.clip in first:
                raise UserError(
                    f"{row.where}: {row.clip} is also that of {first[row.clip]}; keep one of them"
                )
            first[row.clip] = row.where
            columns: dict[str, Any] = dict(row.cells)
            for column in named.values():
                if column not in columns:
                    raise UserError(
                        f"{table}: no column {column!r} in the header; it has {', '.join(columns)}"
                    )
            for name in _COUNTS:
                if columns.get(name, "").isdecimal():
                    columns[name] = int(columns[name])
            name_columns(columns, named, row.where, account)
            columns["text"] = str(columns["text"]).strip()
            if not columns["text"]:
                account.note(EMPTY_TEXTS, row.where)
            columns["audio"] = _relative(language / "clips" / row.clip, source)
            key = _relative(language / row.clip.rpartition(".")[0], source)
            yield SourceRow(row.where, columns, sample_key(key))


@dataclass(frozen=True)
class _VoiceRow:
    where: str
    clip: str
    cells: dict[str, str]


def _table(path: Path) -> Iterator[_VoiceRow]:
    """Raises `UserError` naming the table and line."""
    header: list[str] = []
    for number, line in read_lines(path):
        cells = _cells(line, len(header) or None)
        if not header:
            header = cells
            if "path" not in header or len(set(header)) != len(header):
                raise UserError(
                    f"{path}: the header lacks the column path, or has one twice; restore the file"
                )
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{path}: line {number}: {len(cells)} cells, but the header names {len(header)}; "
                "correct the line"
            )
        named = dict(zip(header, cells, strict=True))
        clip = named.pop("path")
        if not clip:
            raise UserError(f"{path}: line {number}: no path; correct or remove the line")
        # Releases of 2019 leave the ending out.
        yield _VoiceRow(f"{path}: line {number}", clip if "." in clip else f"{clip}.mp3", named)


def _cells(line: str, many: int | None = None) -> list[str]:
    """The cells of a line, ``many`` where that is known.

    Today's releases are written without quoting: a backslash escapes a tab, a quote or a backslash.
    Those of 2019 have cells with quotes in quotes, doubled. Of both, a quote can be just a letter.
    """
    cells = [_cell(part) for part in _TAB.sub("\\1\n", line).split("\n")]
    if many is not None and len(cells) != many:
        with suppress(csv.Error):
            quoted = next(csv.reader([line], delimiter="\t"), [])
            return quoted if len(quoted) == many else cells
    return cells


def _cell(written: str) -> str:
    inner = written[1:-1]
    quoted = len(written) > 1 and written[0] == written[-1] == '"' and '""' in inner
    if quoted and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return _ESCAPED.sub(r"\1", written)


def _relative(path: Path, source: Path) -> str:
    return path.relative_to(source).as_posix()


LAYOUTS.register("common_voice", CommonVoice())
