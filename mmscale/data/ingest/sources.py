"""What `pack` turns into shards: the samples of each set of a source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mmscale.config import MediaConfig
from mmscale.data.account import Account
from mmscale.data.index.probe import ENDINGS
from mmscale.data.ingest.column_roles import USES
from mmscale.data.ingest.hub_cache import cache_of, snapshot_in
from mmscale.data.ingest.layout import LayoutOptions, SplitParquet, SplitRows
from mmscale.data.ingest.open_layout import SourceOptions, SplitPart, open_layout, with_limits
from mmscale.data.ingest.parquet_source import ParquetPart, ParquetSource
from mmscale.data.ingest.row_checks import RowChecks
from mmscale.data.ingest.table_row import RowReader, TableRow
from mmscale.data.worker_pool import TaskPool
from mmscale.errors import UserError


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

    def uses(self) -> dict[str, str]:
        """What becomes of each column or kind of file, in words."""
        ...

    def first(self, count: int) -> list[TableRow]:
        """Its first samples, in the order of the source."""
        ...

    def load(
        self, portion: range, pool: TaskPool, scratch: Path, progress: bool
    ) -> AbstractContextManager[SourceSamples]:
        """The samples of one of the portions, for as long as the context is open.

        ``scratch`` is an existing folder for temporary files.
        """
        ...


@dataclass(frozen=True)
class OpenSource:
    """The sets of a source by name; one, ``""``, where it has no splits."""

    layout: str
    sets: dict[str, Source]


def open_source(
    source: Path,
    options: SourceOptions,
    media: MediaConfig,
    out: Path,
    account: Account,
    shuffle_seed: int = 0,
    shuffle_bytes: int = 1 << 33,
) -> OpenSource:
    """Look through ``source`` in its layout; ``account`` notes what is not taken.

    Of folders, CSV and JSON every row is read and every named file is known to exist and to
    have at most ``media.max_file_bytes``; rows are held in memory, about a kilobyte each and media
    never. Of Parquet only columns of keys, labels and splits are read. A folder inside ``source``
    that is ``out`` is skipped.

    Raises `UserError` naming the file, and for tables the row, with the remedy.
    """
    try:
        options = with_limits(options, out, media.max_file_bytes)
        layout, sets = open_layout(source, options, account)
        source = snapshot_in(source)
        others = _others(source, options.reading)
        checks = RowChecks(account)
        opened: dict[str, Source] = {}
        for name, parts in sets.items():
            tables = [ParquetPart(part.split, part.key_prefix)
                      for part in parts if isinstance(part.split, SplitParquet)]  # fmt: skip
            if tables:
                assert len(tables) == len(parts), "a layout gives rows or Parquet, never both"
                opened[name] = ParquetSource(
                    source,
                    tables,
                    media,
                    options=options.reading,
                    account=account,
                    checks=checks,
                    others=others,
                    shuffle_seed=shuffle_seed,
                    shuffle_bytes=shuffle_bytes,
                )
            else:
                opened[name] = _row_source(source, parts, media, options.reading, checks, others)
        return OpenSource(layout, opened)
    except OSError as error:
        where = error.filename or source
        raise UserError(f"{where}: cannot be read ({error.strerror}); check its rights") from None


def _others(source: Path, reading: LayoutOptions) -> tuple[Path, ...]:
    """Folders that paths and links may lead into."""
    named = (source if source.is_dir() else source.parent, reading.root, cache_of(source))
    return tuple(folder for folder in named if folder is not None)


def _row_source(
    source: Path,
    parts: list[SplitPart],
    media: MediaConfig,
    reading: LayoutOptions,
    checks: RowChecks,
    others: tuple[Path, ...],
) -> RowSource:
    uses: dict[str, str] = {}
    rows = (row for part in parts for row in _rows(part, media, reading, checks, others, uses))
    return RowSource(source, rows, uses)


def _rows(
    part: SplitPart,
    media: MediaConfig,
    reading: LayoutOptions,
    checks: RowChecks,
    others: tuple[Path, ...],
    uses: dict[str, str],
) -> Iterator[TableRow]:
    split = part.split
    assert isinstance(split, SplitRows)
    reader = RowReader(split.folder, media, others, reading.root)
    checks.begin([split.folder, *([reading.root] if reading.root else [])])
    known: set[str] = set()
    for row in split.rows:
        checks.see(row.columns, row.where)
        if not known >= row.columns.keys():
            known |= row.columns.keys()
        yield reader.row(
            row.where,
            row.columns,
            row.key,
            key_prefix=part.key_prefix,
            files=row.files,
            named=row.named,
        )
    checks.finish()
    uses.update(split.uses)
    taken = {words for words in split.uses.values()}
    for column in sorted(known):
        words = USES.get(column, f"json.{column}")
        if words not in taken:
            uses.setdefault(column, words)


class RowSource:
    """A `Source` whose rows are held in memory; one portion, so the shuffle is over all of them."""

    def __init__(
        self, source: Path, rows: Iterable[TableRow], uses: dict[str, str] | None = None
    ) -> None:
        """Raises `UserError` for keys that are taken or unreadable, and when there is no row."""
        self._uses = {} if uses is None else uses
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

    def uses(self) -> dict[str, str]:
        return self._uses

    def first(self, count: int) -> list[TableRow]:
        return self._rows[:count]

    def load(
        self, portion: range, pool: TaskPool, scratch: Path, progress: bool
    ) -> AbstractContextManager[SourceSamples]:
        return nullcontext(self._rows)
