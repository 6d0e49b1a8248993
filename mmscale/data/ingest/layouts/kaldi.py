"""Data folders of Kaldi and ESPnet: wav.scp, text, and segments or utt2spk where there are any."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmscale.data.account import Account, Notice
from mmscale.data.ingest.clip_cut import ClipCut
from mmscale.data.ingest.file_splits import note_others
from mmscale.data.ingest.layout import LayoutOptions, SourceRow, Split, SplitRows
from mmscale.data.ingest.speech_corpus import (
    CLIPS_ALONE,
    EMPTY_TEXTS,
    TEXTS_ALONE,
    check_columns,
    sample_key,
    subfolders,
    wanted_splits,
)
from mmscale.data.ingest.text_lines import read_ids
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

RECORDINGS_ALONE = Notice(
    "recordings without a segment, left out", "add their parts to the file segments"
)

_CLIPS, _TEXT, _PARTS = "wav.scp", "text", "segments"
# By file of "UTTERANCE VALUE": the column it becomes.
_FACTS = {"utt2spk": "speaker", "utt2lang": "language"}
_READ = (_CLIPS, _TEXT, _PARTS, *_FACTS)
# Paths that show which folder they are relative to: a few files may be missing.
_LOOK = 16
_ARK = re.compile(r"\.ark(:\d+)?(\[.*\])?$|:\d+$")


class Kaldi:
    """Nothing that wav.scp names is run. Relative paths are those of the folder in which the recipe
    ran: the data folder, one above it, or ``root``.
    """

    name = "kaldi"
    summary = "Kaldi and ESPnet data folders: data/SPLIT/ with wav.scp, text, segments, utt2spk"

    def matches(self, source: Path) -> bool:
        return bool(_sets(source))

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        check_columns(options, self.name)
        sets = _sets(source)
        if not sets:
            raise UserError(
                f"{source}: no wav.scp beside a text in it or in its folders; name the folder data"
            )
        splits: dict[str, Split] = {}
        for name in wanted_splits(sets, options.splits, source):
            folder = sets[name]
            note_others(folder, {folder / file for file in _READ}, account)
            clips = _clips(folder)
            base = _base(folder, [clip.path for clip in clips.values()], options.root)
            splits[name] = SplitRows(base, _rows(folder, clips, account))
        return splits


@dataclass(frozen=True)
class _KaldiClip:
    where: str
    path: str
    begin_s: float | None = None
    end_s: float | None = None


def _sets(source: Path) -> dict[str, Path]:
    if _is_set(source):
        return {"": source}
    for top in (source, source / "data"):
        if sets := {folder.name: folder for folder in subfolders(top) if _is_set(folder)}:
            return sets
    return {}


def _is_set(folder: Path) -> bool:
    return (folder / _CLIPS).is_file() and (folder / _TEXT).is_file()


def _rows(folder: Path, clips: dict[str, _KaldiClip], account: Account) -> Iterator[SourceRow]:
    texts = read_ids(folder / _TEXT)
    facts = {
        column: read_ids(folder / file)
        for file, column in _FACTS.items()
        if (folder / file).is_file()
    }
    parts = clips
    if (folder / _PARTS).is_file():
        parts = _parts(folder / _PARTS, clips)
        used = {part.path for part in parts.values()}
        for clip in clips.values():
            if clip.path not in used:
                account.note(RECORDINGS_ALONE, clip.where)
    for name in texts.keys() - parts.keys():
        account.note(TEXTS_ALONE, f"{folder / _TEXT}: line {texts[name][0]}")
    for name, part in parts.items():
        if name not in texts:
            account.note(CLIPS_ALONE, part.where)
            continue
        text = texts[name][1]
        if not text:
            account.note(EMPTY_TEXTS, f"{folder / _TEXT}: line {texts[name][0]}")
        columns: dict[str, Any] = {"audio": part.path, "text": text}
        if part.begin_s is not None:
            columns["audio"] = ClipCut(part.path, part.begin_s, part.end_s)
        for column, of_name in facts.items():
            columns[column] = of_name.get(name, (0, ""))[1]
        yield SourceRow(part.where, columns, sample_key(name))


def _clips(folder: Path) -> dict[str, _KaldiClip]:
    """Whole recordings by id. Raises `UserError` for what is no plain file."""
    table, clips = folder / _CLIPS, {}
    for name, (number, path) in read_ids(table).items():
        where = f"{table}: line {number}"
        if path.endswith("|") or path.startswith("|"):
            raise UserError(
                f"{where}: a command ({path[:60]!r}), and none is run; write its sound to a file "
                "(Kaldi: wav-copy, ESPnet: scripts/audio/format_wav_scp.sh) and name that"
            )
        if _ARK.search(path) or path == "-":
            raise UserError(
                f"{where}: a place in an archive ({path[:60]!r}), which is not read; write one "
                "file a clip (Kaldi: wav-copy, ESPnet: format_wav_scp.sh) and name that"
            )
        if not path:
            raise UserError(f"{where}: names no file; write ID PATH")
        clips[name] = _KaldiClip(where, path)
    return clips


def _parts(table: Path, clips: dict[str, _KaldiClip]) -> dict[str, _KaldiClip]:
    """Parts of recordings by id. Raises `UserError` naming the line."""
    parts = {}
    for name, (number, rest) in read_ids(table).items():
        where = f"{table}: line {number}"
        try:
            recording, begin_s, end_s = rest.split()
            times = float(begin_s), float(end_s)
        except ValueError:
            raise UserError(f"{where}: not ID RECORDING BEGIN END; correct the line") from None
        if recording not in clips:
            raise UserError(
                f"{where}: no recording {recording} in {_CLIPS}; add it or remove the line"
            )
        # An end of -1 is that of the recording.
        end = None if times[1] == -1 else times[1]
        parts[name] = _KaldiClip(where, clips[recording].path, times[0], end)
    return parts


def _base(folder: Path, paths: list[str], root: Path | None) -> Path:
    """What relative paths are relative to: the first folder in which one of them exists.

    Raises `UserError` with the remedy if there is none.
    """
    relative = [path for path in paths if not os.path.isabs(path)][:_LOOK]
    if not relative:
        return folder
    above = folder.absolute().parents
    places = [*([root] if root else []), folder, *list(above)[:3]]
    for place in places:
        if any((place / path).exists() for path in relative):
            return place
    raise UserError(
        f"{folder / _CLIPS}: {relative[0]!r} is neither in {folder} nor in a folder above it; name "
        "the folder in which the recipe ran with --root DIR"
    )


LAYOUTS.register("kaldi", Kaldi())
