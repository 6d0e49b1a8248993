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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mmscale.config import MediaConfig
from mmscale.data.ingest.shard_writer import check_names
from mmscale.data.ingest.table_row import (
    FINGERPRINT_BYTES,
    MEDIA_COLUMNS,
    RowReader,
    check_file,
    is_empty,
    plain,
)
from mmscale.data.worker_pool import TaskPool
from mmscale.errors import UserError
from mmscale.prf import Permutation, derive_key

# Rows are converted in batches of about this many bytes, and never more than so many rows.
_BATCH_BYTES = 1 << 24
_BATCH_ROWS = 1024
# What tar headers and padding add to a sample, about.
_TAR_BYTES = 2048


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


@dataclass(frozen=True, kw_only=True)
class _Table:
    """One Parquet file. ``key_prefix`` begins the keys of rows that name none; rows count from 0
    here.
    """

    path: Path
    size: int
    mtime_ns: int
    key_prefix: str
    has_key: bool
    rows: int

    def where(self, row: int) -> str:
        return f"{self.path}: row {row + 1}"

    def default_key(self, row: int) -> str:
        return f"{self.key_prefix}{row + 1:08d}"


@dataclass(frozen=True)
class _RowGroup:
    """Row group ``number`` of a file; ``first`` is its first row there, ``bytes`` its estimated
    size in tar.
    """

    table: _Table
    number: int
    first: int
    rows: int
    bytes: int


class ParquetSource:
    """A `sources.Source` over Parquet files; nothing but the key column is read before `load`."""

    def __init__(
        self,
        source: Path,
        paths: list[Path],
        media: MediaConfig,
        shuffle_seed: int,
        shuffle_bytes: int,
    ) -> None:
        """Raises `UserError` naming the file for damaged files, columns that json cannot hold, and
        keys.
        """
        _need_pyarrow(source)
        groups = [group for path in paths for group in _open_table(source, path)]
        if not groups:
            raise UserError(f"{source}: holds no samples; every Parquet file there is empty")
        self._tables = list(dict.fromkeys(group.table for group in groups))
        _check_default_keys(self._tables)
        _check_keys(self._tables)
        if sum(group.bytes for group in groups) > shuffle_bytes:
            order = Permutation(derive_key("pack row groups", shuffle_seed), len(groups))
            groups = [groups[number] for number in order(np.arange(len(groups))).tolist()]
        self._groups, self._media = groups, media
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
            _Unpacking(group, self._media, path) for group, path in zip(groups, paths, strict=True)
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

    def _locate(self, number: int) -> tuple[_Table, int]:
        at = int(np.searchsorted(self._starts, number, side="right")) - 1
        group = self._groups[at]
        return group.table, group.first + number - int(self._starts[at])


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

    group: _RowGroup
    media: MediaConfig
    out: Path


def _unpack(task: _Unpacking) -> NDArray[np.int64]:
    """Write the samples of a row group one after another; int64 [rows], where each ends in the
    file.
    """
    group, table = task.group, task.group.table
    reader = RowReader(table.path.parent, task.media)
    ends = np.zeros(group.rows, np.int64)
    end, done = 0, 0
    with open(task.out, "wb") as file:
        for columns in _rows(group):
            row = group.first + done
            sample = reader.row(table.where(row), columns, table.default_key(row)).encode(
                task.media
            )
            file.write(sample)
            end += len(sample)
            ends[done] = end
            done += 1
    assert done == group.rows
    return ends


def _rows(group: _RowGroup) -> Iterator[dict[str, Any]]:
    """The rows of a row group as Python values, a batch at a time."""
    table = group.table
    now = table.path.stat()
    if (now.st_size, now.st_mtime_ns) != (table.size, table.mtime_ns):
        raise UserError(f"{table.path}: changed while it was packed; give the command again")
    batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.rows // group.bytes))
    done = 0
    try:
        with _open(table.path) as file:
            for batch in file.iter_batches(
                batch_rows, row_groups=[group.number], use_threads=False
            ):
                for number in range(batch.num_rows):
                    (columns,) = batch.slice(number, 1).to_pylist()
                    yield columns
                    done += 1
    except _read_errors() as error:
        raise _unreadable(f"{table.path}: row {group.first + done + 1}", error) from None


def _split(groups: list[_RowGroup], most_bytes: int) -> Iterator[tuple[int, int]]:
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


def _open_table(source: Path, path: Path) -> list[_RowGroup]:
    """The row groups of a file that hold rows, in order."""
    # A file that was named may be a link to anywhere; one that was found in a folder may not.
    base = path.resolve().parent if path == source else source.resolve()
    status = check_file(path, path.name, base, str(path))
    try:
        with _open(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
            sizes = [
                (metadata.row_group(number).num_rows, metadata.row_group(number).total_byte_size)
                for number in range(metadata.num_row_groups)
            ]
    except _read_errors() as error:
        raise _unreadable(str(path), error) from None
    _check_schema(path, schema)
    prefix = "" if path == source else f"{path.stem.replace('.', '_')}/"
    rows = sum(rows for rows, _ in sizes)
    table = _Table(
        path=path,
        size=status.size,
        mtime_ns=status.mtime_ns,
        key_prefix=prefix,
        has_key="key" in schema.names,
        rows=rows,
    )
    groups, first = [], 0
    for number, (rows, size) in enumerate(sizes):
        if rows:
            groups.append(_RowGroup(table, number, first, rows, size + rows * _TAR_BYTES))
        first += rows
    return groups


def _check_schema(path: Path, schema: Any) -> None:
    names = schema.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path}: two columns are called {twice!r}; rename one")
    for column in schema:
        if column.name not in MEDIA_COLUMNS and _holds_binary(column.type):
            raise UserError(
                f"{path}: column {column.name!r} holds bytes ({column.type}), which JSON cannot; "
                f"rename it to image or audio, or drop it"
            )


def _holds_binary(kind: Any) -> bool:
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    binary = (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )
    return binary or any(
        _holds_binary(kind.field(number).type) for number in range(kind.num_fields)
    )


def _check_default_keys(tables: list[_Table]) -> None:
    first: dict[str, _Table] = {}
    for table in tables:
        earlier = first.setdefault(table.key_prefix, table)
        if earlier is not table:
            raise UserError(
                f"{table.path}: its rows would have the keys of {earlier.path}; rename one of them"
            )


def _check_keys(tables: list[_Table]) -> None:
    """Refuse a key that is invalid or taken. Numbered keys alone cannot clash.

    Keys are compared by 64-bit hashes, so that a row costs eight bytes: among 10^8 keys that are
    all different two are taken for the same once in some 4,000 data sets.
    """
    for table in tables:
        _check_key(table.default_key(0), str(table.path))
    if not any(table.has_key for table in tables):
        return
    hashes = np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(key.encode("utf-8"), digest_size=8).digest())
            for _, key in _keys(tables)
        ),
        np.uint64,
        sum(table.rows for table in tables),
    )
    order = np.argsort(hashes, kind="stable")
    clashes = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    if len(clashes):
        at = clashes[np.argmin(order[clashes + 1])]
        first_place, _ = next(itertools.islice(_keys(tables), int(order[at]), None))
        second_place, key = next(itertools.islice(_keys(tables), int(order[at + 1]), None))
        raise UserError(
            f"{second_place}: key {key!r} is also that of {first_place}; give each its own"
        )


def _keys(tables: list[_Table]) -> Iterator[tuple[str, str]]:
    """(where, valid key) of every row, in the order of the files."""
    for table in tables:
        if not table.has_key:
            yield from ((table.where(row), table.default_key(row)) for row in range(table.rows))
            continue
        try:
            with _open(table.path) as file:
                batches = file.iter_batches(_BATCH_ROWS, columns=["key"], use_threads=False)
                values = itertools.chain.from_iterable(
                    batch.column("key").to_pylist() for batch in batches
                )
                for row, value in enumerate(values):
                    where = table.where(row)
                    key = table.default_key(row) if is_empty(value) else plain(value, "key", where)
                    _check_key(key, where)
                    yield where, key
        except UserError:
            raise
        except _read_errors() as error:
            raise _unreadable(f"{table.path}: column 'key'", error) from None


def _check_key(key: str, where: str) -> None:
    try:
        check_names(key, ["txt"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _need_pyarrow(source: Path) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UserError(
            f"{source}: Parquet is read with pyarrow, which is missing; run `pip install "
            "'mmscale[tables]'`"
        ) from None


def _open(path: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile` that streams: neither mapped nor read ahead."""
    import pyarrow.parquet as parquet

    return parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)


def _read_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises on damaged files and on values that Python cannot hold."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, ValueError, OverflowError)


def _unreadable(where: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160]
    return UserError(
        f"{where}: cannot be read ({type(error).__name__}: {reason}); write the file again"
    )
