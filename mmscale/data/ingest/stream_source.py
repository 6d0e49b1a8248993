"""Rows that come once, such as of a generator, as a source: written to a scratch file as they come.

A shuffle needs every sample at hand, and media do not fit in memory: so each is encoded as it will
stand in a shard, and a shard is then a copy of byte ranges, as of Parquet.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmscale.config import MediaConfig
from mmscale.data.account import Account
from mmscale.data.ingest.column_roles import USES
from mmscale.data.ingest.layout import SourceRow
from mmscale.data.ingest.open_layout import SourceOptions
from mmscale.data.ingest.parquet_source import UnpackedSamples
from mmscale.data.ingest.python_rows import python_rows
from mmscale.data.ingest.row_checks import RowChecks
from mmscale.data.ingest.sources import OpenSource, Source, SourceSamples
from mmscale.data.ingest.split_names import check_split_names
from mmscale.data.ingest.table_row import FINGERPRINT_BYTES, RowReader, TableRow, is_empty
from mmscale.data.ingest.table_rows import SPLIT_COLUMN
from mmscale.data.worker_pool import TaskPool
from mmscale.errors import UserError

Rows = Iterable[Mapping[str, Any]]

_FOLDER = ".rows"
_FIRST = 3


def open_rows(
    source: Rows | Mapping[str, Rows],
    options: SourceOptions,
    media: MediaConfig,
    scratch: Path,
    account: Account,
) -> OpenSource:
    """Read rows that are Python objects into files in ``scratch``: one set, or one for each split
    of a dict.

    Raises `UserError` naming the row and the remedy.
    """
    splits = dict(source) if isinstance(source, Mapping) else {"": source}
    check_split_names(splits, scratch.parent)
    if options.layout is not None:
        raise UserError("layout: is for files; rows of Python have columns alone")
    if options.split is not None:
        if options.split not in splits:
            raise UserError(f"no split {options.split!r}; there are {', '.join(splits) or 'none'}")
        splits = {"": splits[options.split]}
    checks = RowChecks(account)
    reading = options.reading

    def opened(name: str, rows: Iterable[SourceRow]) -> Source:
        return StreamSource(
            rows,
            scratch / f"{name or 'rows'}.tmp",
            media,
            checks,
            root=reading.root,
            merge_splits=options.merge_splits,
        )

    made = {
        name: python_rows(rows, reading.columns, media.max_file_bytes)
        for name, rows in splits.items()
    }
    if options.merge_splits:
        merged = (_prefixed(row, name) for name, rows in made.items() for row in rows)
        return OpenSource("rows of Python", {"": opened("", merged)})
    return OpenSource("rows of Python", {name: opened(name, made[name]) for name in made})


def _prefixed(row: SourceRow, split: str) -> SourceRow:
    """The row with its split before its key."""
    if not split:
        return row
    columns = dict(row.columns)
    if not is_empty(columns.get("key")):
        columns["key"] = f"{split}/{columns['key']}"
    return replace(row, where=f"{split}: {row.where}", columns=columns, key=f"{split}/{row.key}")


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """A folder in ``out`` for the rows of a pack; it goes at its end."""
    folder = out / _FOLDER
    existed = out.exists()
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a pack that was killed
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{where}: cannot be written ({error.strerror}); check it") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not existed and out.exists() and not any(out.iterdir()):
            out.rmdir()


class StreamSource:
    """A `sources.Source` of rows that are read once. Its file at ``path`` is the caller's."""

    def __init__(
        self,
        rows: Iterable[SourceRow],
        path: Path,
        media: MediaConfig,
        checks: RowChecks,
        *,
        root: Path | None = None,
        merge_splits: bool = False,
    ) -> None:
        """Read all rows into ``path``. Raises `UserError` naming the row that is bad."""
        self._first: list[TableRow] = []
        ends: list[int] = []
        prints: list[bytes] = []
        columns: dict[str, None] = {}
        keys: dict[bytes, int] = {}
        folders = [Path.cwd(), *([root] if root else [])]
        reader = RowReader(folders[0], media, folders[1:], root)
        checks.begin(folders)
        with open(path, "wb") as file:
            for number, row in enumerate(rows, start=1):
                if SPLIT_COLUMN in row.columns and not merge_splits:
                    raise UserError(
                        f"{row.where}: has a column split; give a dict with the rows of each "
                        "split, or merge_splits=True"
                    )
                checks.see(row.columns, row.where)
                columns.update(dict.fromkeys([*row.columns, *row.named]))
                made = reader.row(row.where, row.columns, row.key, named=row.named)
                made.check()
                key = hashlib.blake2b(made.key.encode(), digest_size=16).digest()
                if key in keys:
                    raise UserError(
                        f"{row.where}: key {made.key!r} is also that of row {keys[key]}; give each "
                        "its own"
                    )
                keys[key] = number
                sample = made.encode(media)
                file.write(sample)
                ends.append(file.tell())
                prints.append(hashlib.blake2b(sample, digest_size=FINGERPRINT_BYTES).digest())
                if number <= _FIRST:
                    self._first.append(made)
        if not ends:
            raise UserError("the rows: there are none; give at least one")
        checks.finish()
        self._samples = UnpackedSamples([path], [np.array(ends, np.int64)])
        self._prints, self._columns = prints, columns
        self.portions = [range(len(ends))]

    def where(self, number: int) -> str:
        return f"row {number + 1}"

    def fingerprint(self, number: int) -> bytes:
        return self._prints[number]

    def uses(self) -> dict[str, str]:
        return {column: USES.get(column, f"json.{column}") for column in self._columns}

    def first(self, count: int) -> list[TableRow]:
        return self._first[:count]

    def load(
        self, portion: range, pool: TaskPool, scratch: Path, progress: bool
    ) -> AbstractContextManager[SourceSamples]:
        return nullcontext(self._samples)
