"""What `pack` turns into shards: a folder of media, or a table (CSV, JSON lines, Parquet)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from mmscale.config import MediaConfig
from mmscale.data.index.probe import ENDINGS, kind_of
from mmscale.data.ingest.csv_source import csv_samples, json_samples
from mmscale.data.ingest.parquet_source import ParquetSource, parquet_files
from mmscale.data.ingest.table_row import MEDIA_COLUMNS, TableRow, check_file, encode_json
from mmscale.data.worker_pool import TaskPool
from mmscale.errors import UserError

# What reads a file that ends so. Its rows are held in memory, see `RowSource`.
TABLES: dict[str, Callable[[Path, MediaConfig], Iterator[TableRow]]] = {
    ".csv": csv_samples,
    ".jsonl": json_samples,
    ".ndjson": json_samples,
}


class SourceSample(Protocol):
    """What a worker writes into a shard. Picklable."""

    def encode(self, media: MediaConfig) -> bytes:
        """The sample as `shard_writer.encode_sample` gives it. Raises `UserError` naming the
        row.
        """
        ...


class SourceSamples(Protocol):
    """The samples of one portion, by number from 0."""

    def __getitem__(self, number: int, /) -> SourceSample: ...


class Source(Protocol):
    """Samples 0..N-1, every key checked to be valid and unique.

    Attributes:
        portions: consecutive ranges of samples, each of which is shuffled in itself.
    """

    portions: list[range]

    def where(self, number: int) -> str:
        """What messages call a sample: its file, or its table and row."""
        ...

    def fingerprint(self, number: int) -> bytes:
        """`rows.FINGERPRINT_BYTES` that change when the sample does."""
        ...

    def load(
        self, portion: range, pool: TaskPool, scratch: Path, progress: bool
    ) -> AbstractContextManager[SourceSamples]:
        """The samples of one of the portions, for as long as the context is open.

        ``scratch`` is an existing folder for temporary files.
        """
        ...


def open_source(
    source: Path, media: MediaConfig, out: Path, shuffle_seed: int = 0, shuffle_bytes: int = 1 << 33
) -> Source:
    """Look through ``source``: a folder, ``.csv``, ``.jsonl``, ``.parquet`` or a folder of those.

    Of folders, CSV and JSON lines every row is read and every named file is known to exist and to
    have at most ``media.max_file_bytes``; rows are held in memory, about a kilobyte each and media
    never. Of Parquet only the key column is read. A folder inside ``source`` that is ``out`` is
    skipped.

    Raises `UserError` naming the file, and for tables the row, with the remedy.
    """
    try:
        if not source.exists():
            raise UserError(f"{source}: no such folder or file; check the path")
        if tables := parquet_files(source):
            return ParquetSource(source, tables, media, shuffle_seed, shuffle_bytes)
        if source.is_dir():
            return RowSource(source, _folder(source, media, out))
    except OSError as error:
        where = error.filename or source
        raise UserError(f"{where}: cannot be read ({error.strerror}); check its rights") from None
    read = TABLES.get(source.suffix.lower())
    if read is None:
        raise UserError(
            f"{source}: not a kind of source that is read; use a folder or a file that ends in "
            f"{', '.join([*TABLES, '.parquet'])}"
        )
    return RowSource(source, read(source, media))


class RowSource:
    """A `Source` whose rows are held in memory; one portion, so the shuffle is over all of them."""

    def __init__(self, source: Path, rows: Iterable[TableRow]) -> None:
        """Raises `UserError` for keys that are taken or unreadable, and when there is no row."""
        self._rows = list(rows)
        if not self._rows:
            known = ", ".join(sum(ENDINGS.values(), ()))
            raise UserError(f"{source}: holds no samples; known endings: {known}")
        first: dict[str, str] = {}
        for row in self._rows:
            row.check()
            if row.key in first:
                raise UserError(
                    f"{row.where}: key {row.key!r} is also that of {first[row.key]}; give each its "
                    "own"
                )
            first[row.key] = row.where
        self.portions = [range(len(self._rows))]

    def where(self, number: int) -> str:
        return self._rows[number].where

    def fingerprint(self, number: int) -> bytes:
        return self._rows[number].fingerprint()

    def load(
        self, portion: range, pool: TaskPool, scratch: Path, progress: bool
    ) -> AbstractContextManager[SourceSamples]:
        return nullcontext(self._rows)


def _folder(source: Path, media: MediaConfig, out: Path) -> Iterator[TableRow]:
    """Files of one folder and stem are one sample; the first sub-folder is its label, as in
    ImageFolder.
    """
    base, skipped = source.resolve(), out.resolve()
    for directory, subfolders, names in os.walk(source, onerror=_raise):
        folder = Path(directory)
        for name in subfolders:
            if not name.startswith(".") and (folder / name).is_symlink():
                raise UserError(
                    f"{folder / name}: a link to a folder, which is not followed; copy the folder "
                    "there, or pack it by itself"
                )
        subfolders[:] = sorted(
            name
            for name in subfolders
            if not name.startswith(".") and (folder / name).resolve() != skipped
        )
        stems: dict[str, TableRow] = {}
        for name in sorted(names):
            stem, _, ending = name.rpartition(".")
            ending = ending.lower()
            if not stem or name.startswith(".") or kind_of(ending) is None:
                continue
            # A dot would end the key, and what follows become part of the field.
            key = (folder.relative_to(source) / stem.replace(".", "_")).as_posix()
            row = stems.setdefault(stem, TableRow(where=str(folder / stem), key=key))
            before = row.fields.get(ending)
            if before is not None:
                assert not isinstance(before, bytes)
                raise UserError(
                    f"{folder / name}: its sample has {before.path.name!r} too; rename one of them"
                )
            row.fields[ending] = check_file(
                folder / name, name, base, str(folder / name), media.max_file_bytes
            )
        label = folder.relative_to(source).parts[:1]
        for row in stems.values():
            if not any(kind_of(ending) in (*MEDIA_COLUMNS, "text") for ending in row.fields):
                continue  # a json or cls file on its own describes the folder, not a sample
            if label and "json" not in row.fields:
                row.fields["json"] = encode_json({"label": label[0]}, row.where)
            yield row


def _raise(error: OSError) -> None:
    """Without this, `os.walk` passes over a folder that it cannot read."""
    raise error
