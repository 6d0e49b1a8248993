"""WenetSpeech: one WenetSpeech.json of recordings and their segments, and audio/**/*.opus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmscale.data.account import Account, Notice
from mmscale.data.ingest.clip_cut import ClipCut
from mmscale.data.ingest.json_rows import first_objects, read_objects
from mmscale.data.ingest.layout import LayoutOptions, SourceRow, Split, SplitRows
from mmscale.data.ingest.speech_corpus import (
    EMPTY_TEXTS,
    check_columns,
    note_unread,
    sample_key,
    wanted_splits,
)
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

OTHER_SEGMENTS = Notice(
    "segments of no split that is packed, left out", "--split NAME takes those of one"
)

_TABLE, _LIST = "WenetSpeech.json", "audios"
# S lies within M, and M within L: only the largest is a split unless another is asked for.
_NESTED = ("L", "M", "S")
_OF_RECORDING = ("source", "tags")
_OF_SEGMENT = ("confidence", "subsets", "begin_time", "end_time")


class WenetSpeech:
    """Splits are the subsets; the JSON is read from beginning to end once for each, and once to
    count.
    """

    name = "wenetspeech"
    summary = "WenetSpeech: WenetSpeech.json and audio/**/*.opus; --split S, M, L, DEV, TEST_NET, …"

    def matches(self, source: Path) -> bool:
        rows = first_objects(_table(source), _LIST, many=1) if _table(source).is_file() else []
        return bool(rows) and {"aid", "path", "segments"} <= rows[0].keys()

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        check_columns(options, self.name)
        table = _table(source)
        if not table.is_file():
            raise UserError(f"{source}: no {_TABLE} in it; name the folder that holds it")
        kinds: Counter[tuple[str, ...]] = Counter()
        for _, _, segment in _segments(table):
            kinds[tuple(segment["subsets"])] += 1
        known = sorted({name for kind in kinds for name in kind})
        within = [name for name in _NESTED if name in known][1:]
        chosen = wanted_splits(known, options.splits, source)
        if not options.splits:
            chosen = [name for name in chosen if name not in within]
        for kind, many in kinds.items():
            if not set(kind) & set(chosen):
                account.note(OTHER_SEGMENTS, ", ".join(kind) or "of no subset", many)
        note_unread(set(table.parent.iterdir()) - {table}, account)
        return {name: SplitRows(table.parent, _rows(table, name, account)) for name in chosen}


def _table(source: Path) -> Path:
    return source if source.name == _TABLE else source / _TABLE


def _rows(table: Path, split: str, account: Account) -> Iterator[SourceRow]:
    for where, recording, segment in _segments(table):
        if split not in segment["subsets"]:
            continue
        text = segment["text"].strip()
        if not text:
            account.note(EMPTY_TEXTS, where)
        columns: dict[str, Any] = {
            "audio": ClipCut(recording["path"], segment["begin_time"], segment["end_time"]),
            "text": text,
            "aid": recording["aid"],
        }
        columns |= {name: recording[name] for name in _OF_RECORDING if name in recording}
        columns |= {name: segment[name] for name in _OF_SEGMENT if name in segment}
        yield SourceRow(where, columns, sample_key(segment["sid"]))


def _segments(table: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """What messages call it, its recording and itself, each with what a sample needs of it.

    Raises `UserError` naming what is lacking.
    """
    for number, recording in read_objects(table, _LIST):
        where = f"{table}: audio {number}"
        _check(recording, {"aid": str, "path": str, "segments": list}, where)
        for place, segment in enumerate(recording["segments"], start=1):
            label = f"{where} segment {place}"
            if not isinstance(segment, dict):
                raise UserError(f"{label}: not an object; copy the file again, whole")
            time = (int, float)
            _check(
                segment,
                {"sid": str, "begin_time": time, "end_time": time, "text": str, "subsets": list},
                label,
            )
            if not all(isinstance(name, str) for name in segment["subsets"]):
                raise UserError(f"{label}: subsets are no names; copy the file again, whole")
            yield label, recording, segment


def _check(found: dict[str, Any], parts: dict[str, Any], where: str) -> None:
    for name, kind in parts.items():
        if not isinstance(found.get(name), kind):
            raise UserError(
                f"{where}: {name} is {found.get(name)!r:.40}; copy the file again, whole"
            )


LAYOUTS.register("wenetspeech", WenetSpeech())
