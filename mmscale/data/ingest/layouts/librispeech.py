"""LibriSpeech, and what is laid out as it is: SUBSET/SPEAKER/CHAPTER/*.flac beside *.trans.txt."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mmscale.data.account import Account
from mmscale.data.ingest.layout import LayoutOptions, SourceRow, Split, SplitRows
from mmscale.data.ingest.speech_corpus import (
    CLIPS_ALONE,
    EMPTY_TEXTS,
    TEXTS_ALONE,
    check_columns,
    note_unread,
    sample_key,
    sounds_in,
    subfolders,
    wanted_splits,
)
from mmscale.data.ingest.text_lines import read_ids
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

_TOP = "LibriSpeech"
# Entries of a folder that show what it is.
_LOOK = 32


class LibriSpeech:
    """Splits are the folders of subsets: train-clean-100, dev-other, …."""

    name = "librispeech"
    summary = "LibriSpeech: SUBSET/SPEAKER/CHAPTER/ with *.flac and one *.trans.txt"

    def matches(self, source: Path) -> bool:
        return bool(_subsets(source))

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        check_columns(options, self.name)
        subsets = _subsets(source)
        if not subsets:
            raise UserError(
                f"{source}: no SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt in it; name the "
                "folder that holds train-clean-100 or the like"
            )
        top = next(iter(subsets.values()))
        note_unread((top if "" in subsets else top.parent).iterdir(), account)
        return {
            name: SplitRows(subsets[name], _rows(subsets[name], account))
            for name in wanted_splits(subsets, options.splits, source)
        }


def _subsets(source: Path) -> dict[str, Path]:
    """Folders of subsets by name; ``source`` itself, without a name, if it is one."""
    if not source.is_dir():
        return {}
    if _is_subset(source):
        return {"": source}
    for top in (source, source / _TOP):
        subsets = {folder.name: folder for folder in subfolders(top) if _is_subset(folder)}
        if subsets:
            return subsets
    return {}


def _is_subset(folder: Path) -> bool:
    """Found by its first entries: a folder of a million pictures is not walked through."""
    return any(
        _transcript(chapter).is_file()
        for speaker in _first_folders(folder)
        for chapter in _first_folders(speaker)
    )


def _first_folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [folder / entry.name for entry in islice(entries, _LOOK) if entry.is_dir()]


def _transcript(chapter: Path) -> Path:
    return chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"


def _rows(subset: Path, account: Account) -> Iterator[SourceRow]:
    first: dict[str, Path] = {}
    for speaker in subfolders(subset):
        for chapter in subfolders(speaker):
            table, clips = _transcript(chapter), sounds_in(chapter)
            lines = read_ids(table) if table.is_file() else {}
            for name in clips.keys() - lines.keys():
                account.note(CLIPS_ALONE, str(clips[name]))
            for name, (number, text) in lines.items():
                where = f"{table}: line {number}"
                if name in first:
                    raise UserError(f"{where}: {name} is also in {first[name]}; keep one of them")
                first[name] = table
                if name not in clips:
                    account.note(TEXTS_ALONE, where)
                    continue
                if not text:
                    account.note(EMPTY_TEXTS, where)
                columns = {
                    "audio": clips[name].relative_to(subset).as_posix(),
                    "text": text,
                    "speaker": speaker.name,
                    "chapter": chapter.name,
                }
                yield SourceRow(where, columns, sample_key(name))


LAYOUTS.register("librispeech", LibriSpeech())
