"""Parquet as a source: rows are unpacked once into tar members in a scratch file, then copied in
any order.

A row group can only be read from its start, so picking rows of a shuffled order would read
everything again for every shard. Instead each row group is streamed once, in small batches, into a
scratch file that holds its samples as they will stand in a shard; a shard is then a copy of byte
ranges. A source that fits the scratch size as a whole is shuffled as a whole. A larger one is
shuffled in two levels: its row groups are drawn in random order into portions of that size, and the
samples of a portion are shuffled.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mmscale.config import MediaConfig
from mmscale.data.account import Account
from mmscale.data.ingest.layout import LayoutOptions, Split, SplitParquet
from mmscale.data.ingest.parquet_table import (
    ParquetTable,
    RowGroup,
    column_names,
    column_values,
    look_through,
    need_pyarrow,
    open_parquet,
    open_table,
    read_errors,
    split_values,
    unreadable,
)
from mmscale.data.ingest.row_checks import RowChecks
from mmscale.data.ingest.shard_writer import check_names
from mmscale.data.ingest.table_row import (
    FINGERPRINT_BYTES,
    RowReader,
    TableRow,
    is_empty,
    plain,
)
from mmscale.data.worker_pool import TaskPool
from mmscale.errors import UserError
from mmscale.prf import Permutation, derive_key

# Rows are converted in batches of about this many bytes, and never more than so many rows.
_BATCH_BYTES = 1 << 24
_BATCH_ROWS = 1024


def parquet_files(source: Path) -> list[Path]:
    """``source`` itself or, sorted, the Parquet files directly in that folder; empty where there
    are none.
    """
    if not source.is_dir():
        return [source] if source.suffix.lower() == ".parquet" else []
    return sorted(
        path
        for path in source.iterdir()
        if path.suffix.lower() == ".parquet" and path.name[0] != "."
    )


@dataclass(frozen=True)
class ParquetPart:
    """A split that is packed, alone or with others. ``key_prefix`` begins its keys."""

    split: SplitParquet
    key_prefix: str = ""


def parquet_splits(split: SplitParquet) -> dict[str, Split]:
    """``split`` by the column ``split`` of its files; under ``""`` where they have none."""
    need_pyarrow(split.files[0])
    values = split_values(split.files)
    if not values:
        return {"": split}
    return {value: replace(split, where_split=value) for value in values}


class ParquetSource:
    """A `sources.Source` over Parquet files; nothing but the key column is read before `load`."""

    def __init__(
        self,
        source: Path,
        parts: list[ParquetPart],
        media: MediaConfig,
        *,
        options: LayoutOptions,
        account: Account,
        checks: RowChecks,
        others: tuple[Path, ...],
        shuffle_seed: int,
        shuffle_bytes: int,
    ) -> None:
        """``others``: folders besides that of the source which links and paths may lead into.

        Raises `UserError` naming the file for damaged files, columns that json cannot hold, and
        keys.
        """
        need_pyarrow(source)
        self._reading = _Reading(media, others, options.root)
        groups = []
        for part in parts:
            folder = part.split.folder if part.split.folder.is_dir() else source.parent
            checks.begin([folder, *([options.root] if options.root else [])])
            for path in part.split.files:
                of_file = self._open(part, path, source, options, account)
                if of_file:
                    look_through(of_file, checks)
                groups += of_file
            checks.finish()
        if not groups:
            raise UserError(f"{source}: holds no samples; every Parquet file there is empty")
        self._tables = list(dict.fromkeys(group.table for group in groups))
        _check_default_keys(self._tables)
        _check_keys(groups)
        if sum(group.bytes for group in groups) > shuffle_bytes:
            order = Permutation(derive_key("pack row groups", shuffle_seed), len(groups))
            groups = [groups[number] for number in order(np.arange(len(groups))).tolist()]
        self._groups = groups
        self._starts = np.cumsum([0, *(group.rows for group in groups)])
        self.portions = [
            range(int(self._starts[first]), int(self._starts[stop]))
            for first, stop in _split(groups, shuffle_bytes)
        ]

    def where(self, number: int) -> str:
        table, row = self._locate(number)
        return table.where(row)

    def fingerprint(self, number: int) -> bytes:
        """Of the row's number and its file's name, size and time."""
        table, row = self._locate(number)
        text = f"{row} {table.size} {table.mtime_ns} {table.path.name}"
        return hashlib.blake2b(
            text.encode("utf-8", "surrogateescape"), digest_size=FINGERPRINT_BYTES
        ).digest()

    @contextmanager
    def load(
        self, portion: range, pool: TaskPool, scratch: Path, progress: bool
    ) -> Iterator[UnpackedSamples]:
        """Unpack the portion's row groups into ``scratch``; they are deleted when the context
        closes.
        """
        first, stop = np.searchsorted(self._starts, [portion.start, portion.stop]).tolist()
        groups = self._groups[first:stop]
        paths = [scratch / f"row-group-{number:06d}.tmp" for number in range(first, stop)]
        tasks = [
            _Unpacking(group, self._reading, path)
            for group, path in zip(groups, paths, strict=True)
        ]
        ends: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(groups)
        try:
            with tqdm(
                total=len(portion), desc="unpack", unit="sample", disable=not progress, leave=False
            ) as bar:
                for number, ends_of_group in pool.run(_unpack, tasks, len(tasks)):
                    ends[number] = ends_of_group
                    bar.update(groups[number].rows)
            yield UnpackedSamples(paths, ends)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)

    def uses(self) -> dict[str, str]:
        """What becomes of each column, in words."""
        return {
            column: table.roles.use(column)
            for table in self._tables
            for column in column_names(table.path)
        }

    def first(self, count: int) -> list[TableRow]:
        """The first samples, in the order of the files."""
        rows = (row for group in self._groups for row in _samples(group, self._reading))
        return list(itertools.islice(rows, count))

    def _open(
        self,
        part: ParquetPart,
        path: Path,
        source: Path,
        options: LayoutOptions,
        account: Account,
    ) -> list[RowGroup]:
        # A file that was named may be a link to anywhere; one that was found in a folder may not.
        own = path.resolve().parent if path == source else part.split.folder.resolve()
        name = ""
        if path != part.split.folder:
            inside = path.relative_to(part.split.folder).with_suffix("")
            name = f"{inside.as_posix().replace('.', '_')}/"
        return open_table(
            path,
            (own, *(folder.resolve() for folder in self._reading.others)),
            key_prefix=part.key_prefix,
            name_prefix=part.key_prefix + name,
            where_split=part.split.where_split,
            columns=options.columns,
            account=account,
        )

    def _locate(self, number: int) -> tuple[ParquetTable, int]:
        at = int(np.searchsorted(self._starts, number, side="right")) - 1
        group = self._groups[at]
        return group.table, group.row(number - int(self._starts[at]))


@dataclass(frozen=True)
class _Reading:
    """What a worker needs to know beside the row group."""

    media: MediaConfig
    others: tuple[Path, ...]
    root: Path | None


@dataclass(frozen=True)
class TarRange:
    """A sample that stands as tar members in bytes ``start`` to ``stop`` of a scratch file."""

    path: Path
    start: int
    stop: int

    def encode(self, media: MediaConfig) -> bytes:
        """The members as they are; ``media`` was heeded when they were written."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            data = file.read(self.stop - self.start)
        assert len(data) == self.stop - self.start, f"{self.path} was cut short"
        return data


class UnpackedSamples:
    """The samples of a portion, by number from 0. Holds eight bytes a sample."""

    def __init__(self, paths: list[Path], ends: list[NDArray[np.int64]]) -> None:
        self._paths, self._ends = paths, ends
        self._starts = np.cumsum([0, *(len(of_group) for of_group in ends)])

    def __getitem__(self, number: int, /) -> TarRange:
        group = int(np.searchsorted(self._starts, number, side="right")) - 1
        row, ends = number - int(self._starts[group]), self._ends[group]
        return TarRange(self._paths[group], int(ends[row - 1]) if row else 0, int(ends[row]))


@dataclass(frozen=True)
class _Unpacking:
    """The task of a worker: one row group into one scratch file."""

    group: RowGroup
    reading: _Reading
    out: Path


def _unpack(task: _Unpacking) -> NDArray[np.int64]:
    """Write the samples of a row group one after another; int64 [rows], where each ends in the
    file.
    """
    ends = np.zeros(task.group.rows, np.int64)
    end = done = 0
    with open(task.out, "wb") as file:
        for row in _samples(task.group, task.reading):
            sample = row.encode(task.reading.media)
            file.write(sample)
            end += len(sample)
            ends[done] = end
            done += 1
    assert done == task.group.rows
    return ends


def _samples(group: RowGroup, reading: _Reading) -> Iterator[TableRow]:
    table = group.table
    reader = RowReader(table.path.parent, reading.media, reading.others, reading.root)
    for row, columns in _rows(group):
        where = table.where(row)
        columns, named = table.roles.apply(columns, where)
        key_prefix = table.key_prefix if not is_empty(columns.get("key")) else ""
        yield reader.row(where, columns, table.default_key(row), key_prefix=key_prefix, named=named)


def _rows(group: RowGroup) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row of the file, its columns as Python values) of each row, a batch at a time."""
    table = group.table
    now = table.path.stat()
    if (now.st_size, now.st_mtime_ns) != (table.size, table.mtime_ns):
        raise UserError(f"{table.path}: changed while it was packed; give the command again")
    batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.rows // group.bytes))
    chosen = None if group.chosen is None else set(group.chosen.tolist())
    row = group.first
    try:
        with open_parquet(table.path) as file:
            for batch in file.iter_batches(
                batch_rows, row_groups=[group.number], use_threads=False
            ):
                for number in range(batch.num_rows):
                    if chosen is None or row in chosen:
                        (columns,) = batch.slice(number, 1).to_pylist()
                        yield row, columns
                    row += 1
    except read_errors() as error:
        raise unreadable(f"{table.path}: row {row + 1}", error) from None


def _split(groups: list[RowGroup], most_bytes: int) -> Iterator[tuple[int, int]]:
    """(first, stop) of runs of groups of at most ``most_bytes`` together, or of a single larger
    group.
    """
    first = size = 0
    for number, group in enumerate(groups):
        if size and size + group.bytes > most_bytes:
            yield first, number
            first, size = number, 0
        size += group.bytes
    yield first, len(groups)


def _check_default_keys(tables: list[ParquetTable]) -> None:
    first: dict[str, ParquetTable] = {}
    for table in tables:
        earlier = first.setdefault(table.name_prefix, table)
        if earlier.path != table.path:
            raise UserError(
                f"{table.path}: its rows would have the keys of {earlier.path}; rename one of them"
            )


def _check_keys(groups: list[RowGroup]) -> None:
    """Refuse a key that is invalid or taken. Numbered keys alone cannot clash.

    Keys are compared by 64-bit hashes, so that a row costs eight bytes: among 10^8 keys that are
    all different two are taken for the same once in some 4,000 data sets.
    """
    tables = list(dict.fromkeys(group.table for group in groups))
    for table in tables:
        _check_key(table.default_key(0), str(table.path))
    if not any(table.has_key for table in tables):
        return
    hashes = np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest())
            for _, key in _keys(groups)
        ),
        np.uint64,
        sum(group.rows for group in groups),
    )
    order = np.argsort(hashes, kind="stable")
    clashes = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    if len(clashes):
        at = clashes[np.argmin(order[clashes + 1])]
        first_place, _ = next(itertools.islice(_keys(groups), int(order[at]), None))
        second_place, key = next(itertools.islice(_keys(groups), int(order[at + 1]), None))
        raise UserError(
            f"{second_place}: key {key!r} is also that of {first_place}; give each its own"
        )


def _keys(groups: list[RowGroup]) -> Iterator[tuple[str, str]]:
    """(where, valid key) of every row, in the order of the files."""
    for table, of_table in itertools.groupby(groups, key=lambda group: group.table):
        mine = list(of_table)
        if not table.has_key:
            rows = (group.row(position) for group in mine for position in range(group.rows))
            yield from ((table.where(row), table.default_key(row)) for row in rows)
            continue
        chosen = None
        if table.where_split is not None:
            chosen = {group.row(position) for group in mine for position in range(group.rows)}
        for row, value in enumerate(column_values(table.path, "key")):
            if chosen is not None and row not in chosen:
                continue
            where = table.where(row)
            if is_empty(value):
                key = table.default_key(row)
            else:
                key = table.key_prefix + plain(value, "key", where)
            _check_key(key, where)
            yield where, key


def _check_key(key: str, where: str) -> None:
    try:
        check_names(key, ["txt"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
