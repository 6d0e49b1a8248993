"""What img2dataset writes with ``--output_format files``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from mmscale.data.account import Account, Notice
from mmscale.data.ingest.layout import LayoutOptions, SourceRow, Split, SplitRows
from mmscale.data.ingest.layouts.image_folder import note_file, samples
from mmscale.plain_file import read_plain
from mmscale.registry import LAYOUTS

NOT_DOWNLOADED = Notice(
    "pictures that img2dataset could not download", "img2dataset tells why in its .parquet files"
)
_STATS = re.compile(r"(\d{5,})_stats\.json")
_BESIDE = ("_stats.json", ".parquet")
_MOST_BYTES = 1 << 24


class Img2datasetFiles:
    """``00000/000000000.jpg`` with a ``.txt`` and a ``.json``; ``00000_stats.json`` beside.

    The ``.parquet`` beside a folder says what the ``.json`` of its samples say.
    """

    name = "img2dataset_files"
    summary = "img2dataset's files: 00000/000000000.jpg with .txt and .json, 00000_stats.json"

    def matches(self, source: Path) -> bool:
        return source.is_dir() and any((source / number).is_dir() for number in _parts(source))

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        return {"": SplitRows(source, _rows(source, options, account), dict(_USES))}


_USES = {
    "jpg, webp, png": "the picture",
    "txt": "the caption: txt",
    "json": "json, with the address, sizes and hashes",
    "_stats.json, .parquet": "not needed: the json of each sample says the same",
}


def failures(source: Path, account: Account) -> None:
    """Note what the statistics call failed."""
    for number in _parts(source):
        path = source / f"{number}_stats.json"
        try:
            stats = json.loads(read_plain(path, _MOST_BYTES))
            failed = sum(
                int(stats.get(name, 0)) for name in ("failed_to_download", "failed_to_resize")
            )
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            note_file(account, path.name, path.name)
            continue
        if failed > 0:
            account.note(NOT_DOWNLOADED, f"{failed} of {path.name}", failed)


def _parts(source: Path) -> list[str]:
    names = (path.name for path in source.iterdir())
    return sorted(match[1] for name in names if (match := _STATS.fullmatch(name)))


def _rows(source: Path, options: LayoutOptions, account: Account) -> Iterator[SourceRow]:
    failures(source, account)
    beside = {f"{number}{ending}" for number in _parts(source) for ending in _BESIDE}
    yield from samples(source, options, account, labelled=False, known=beside)


LAYOUTS.register("img2dataset_files", Img2datasetFiles())
