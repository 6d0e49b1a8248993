"""AISHELL-1: wav/SPLIT/SPEAKER/*.wav, and one transcript whose words are divided by spaces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mmscale.data.account import Account, Notice
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

SPACED = Notice(
    "texts with spaces between words",
    "txt is without those between Chinese characters, json.segmented has them",
)

_TOP = "data_aishell"
_HAN = "\u3005\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_BETWEEN = re.compile(rf"(?<=[{_HAN}])\s+(?=[{_HAN}])")

Transcript = dict[str, tuple[int, str]]


class Aishell:
    """``text`` is without the spaces of the segmentation, which ``json.segmented`` keeps."""

    name = "aishell"
    summary = "AISHELL-1: wav/{train,dev,test}/SPEAKER/*.wav and transcript/aishell_transcript*.txt"

    def matches(self, source: Path) -> bool:
        return any(_table(top) and (top / "wav").is_dir() for top in (source, source / _TOP))

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        check_columns(options, self.name)
        top = source if _table(source) else source / _TOP
        table = _table(top)
        if table is None:
            raise UserError(
                f"{source}: no transcript/aishell_transcript*.txt in it; name the folder "
                f"{_TOP} that was unpacked"
            )
        note_unread([*top.iterdir(), *(top / "wav").glob("*")], account)
        lines = read_ids(table)
        clips = {
            split.name: _clips(split) for split in subfolders(top / "wav") if subfolders(split)
        }
        clips = {name: of_split for name, of_split in clips.items() if of_split}
        if not clips:
            raise UserError(
                f"{top / 'wav'}: no SPLIT/SPEAKER/*.wav in it; unpack the archives S*.tar.gz there"
            )
        for name in lines.keys() - set().union(*clips.values()):
            account.note(TEXTS_ALONE, f"{table}: line {lines[name][0]}")
        return {
            name: SplitRows(top, _rows(top, table, clips[name], lines, account))
            for name in wanted_splits(clips, options.splits, source)
        }


def _table(top: Path) -> Path | None:
    return next(iter(sorted((top / "transcript").glob("aishell_transcript*.txt"))), None)


def _clips(split: Path) -> dict[str, Path]:
    """By id. Raises `UserError` if two speakers have one."""
    clips: dict[str, Path] = {}
    for speaker in subfolders(split):
        for name, path in sounds_in(speaker).items():
            if name in clips:
                raise UserError(f"{path}: {clips[name]} has the same name; keep one of them")
            clips[name] = path
    return clips


def _rows(
    top: Path, table: Path, clips: dict[str, Path], lines: Transcript, account: Account
) -> Iterator[SourceRow]:
    for name, path in clips.items():
        if name not in lines:
            account.note(CLIPS_ALONE, str(path))
            continue
        number, segmented = lines[name]
        where = f"{table}: line {number}"
        text = join_han(segmented)
        if not text:
            account.note(EMPTY_TEXTS, where)
        if text != segmented:
            account.note(SPACED, segmented)
        columns = {
            "audio": path.relative_to(top).as_posix(),
            "text": text,
            "segmented": segmented,
            "speaker": path.parent.name,
        }
        yield SourceRow(where, columns, sample_key(name))


def join_han(text: str) -> str:
    """``text`` without the spaces that stand between two Chinese characters."""
    return _BETWEEN.sub("", text)


LAYOUTS.register("aishell", Aishell())
