"""Writes the files that `index_files` reads, shard by shard, in memory that does not grow with the
data set.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.data.account import Account
from mmscale.data.index.index_files import FACTS, FIELD_NAME, FOLDER, VERSION, Shard, identity
from mmscale.data.index.index_shard import IndexedShard, ShardProblem
from mmscale.data.index.kept_texts import may_be_kept
from mmscale.errors import UserError

# Every field costs 28 bytes for each sample of the folder, whether a sample has it or not.
MAX_FIELDS = 256


class IndexWriter:
    """Collects shards in sorted order and writes their index into ``folder``, an empty one.

    Args:
        folder: an empty one.
        base: URL or path of the folder that holds the shards; None: they lie beside the index.
        key_dots: the rule of their keys, to be kept with the index; empty: it is not.

    Attributes:
        account: what is kept with the index as not simply taken.
    """

    def __init__(self, folder: Path, base: Path | str | None = None, key_dots: str = "") -> None:
        self.folder, self._base, self._key_dots = folder, base, key_dots
        self.account = Account()
        self._shards: list[Shard] = []
        self._samples = 0
        self._problem_count = 0
        self._keys = _Column(folder / "keys.npy", "u1")
        self._key_ends = _Column(folder / "key_ends.npy", "<u8")
        self._columns: dict[str, _Column] = {}
        self._texts: dict[str, _Column] | None = {}  # None: too many to be kept
        self._text_bytes = self._shard_bytes = 0
        self._skipped: dict[str, str] = {}
        # Closed in `finish`.
        self._problems = open(folder / "problems.jsonl", "w", encoding="utf-8")  # noqa: SIM115

    def add_problem(self, shard: str, problem: ShardProblem) -> None:
        """Record a member of ``shard`` that cannot be used."""
        row = {
            "key": problem.key, "shard": shard, "offset": problem.offset, "field": problem.field,
            "reason": problem.reason,
        }  # fmt: skip
        self._problems.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._problem_count += 1

    def add(self, indexed: IndexedShard) -> None:
        """Add everything of one shard. Raises `UserError` as `add_shard` does."""
        for problem in indexed.problems:
            self.add_problem(indexed.shard.name, problem)
        self.add_shard(indexed.shard, indexed.samples, indexed.texts)

    def skip_shard(self, name: str, reason: str) -> None:
        """Note a shard that is left out, and why."""
        self._skipped[name] = reason

    def add_shard(
        self,
        shard: Shard,
        samples: list[tuple[str, dict[str, tuple[int, int, int, int, int]]]],
        texts: dict[str, list[bytes]] | None,
    ) -> None:
        """Add all usable samples of one shard, each as (key, values of `FACTS` by field), and by
        field the texts of those that have one, in their order.

        Raises `UserError` when the folder has more than `MAX_FIELDS` fields.
        """
        assert shard.samples == len(samples)
        assert not self._shards or self._shards[-1].name < shard.name, "shards come in sorted order"
        keys = [key.encode("utf-8") for key, _ in samples]
        self._key_ends.append(
            self._keys.length + np.cumsum([len(key) for key in keys], dtype=np.uint64)
        )
        self._keys.append(np.frombuffer(b"".join(keys), np.uint8))
        columns: dict[str, NDArray[Any]] = {}
        for row, (_, fields) in enumerate(samples):
            for field, facts in fields.items():
                if field not in columns:
                    self._check_fields(field, shard.name, columns)
                    columns[field] = np.zeros(len(samples), FACTS)
                columns[field][row] = facts
        for field, values in columns.items():
            self._column(field).append(values, at=self._samples)
        self._shards.append(shard)
        self._samples += len(samples)
        self._keep(shard.bytes, texts)

    def finish(self) -> None:
        """Complete all files; ``manifest.json`` last."""
        for column in (self._keys, self._key_ends):
            column.finish(column.length)
        for column in self._columns.values():
            column.finish(self._samples)
        self._problems.close()
        self._forget_texts(final=True)
        tree: dict[str, Any] = {
            "version": VERSION,
            "digest": identity(self._shards),
            "samples": self._samples,
            "shards": [shard.facts() for shard in self._shards],
            "fields": sorted(self._columns),
            "problems": self._problem_count,
        }
        if self._texts:
            for column in self._texts.values():
                column.finish(column.length)
            tree["texts"] = {field: self._texts[field].length for field in sorted(self._texts)}
        if self._skipped:
            tree["skipped"] = dict(sorted(self._skipped.items()))
        if isinstance(self._base, Path):
            tree["folder"] = str(self._base)
        elif self._base:
            tree["base"] = self._base
        if self._key_dots:
            tree["key_dots"] = self._key_dots
        if account := self.account.as_json():
            tree["account"] = account
        (self.folder / "manifest.json").write_text(
            json.dumps(tree, ensure_ascii=False, indent=1), "utf-8"
        )

    def abandon(self) -> None:
        """Close all files without completing them."""
        texts = (self._texts or {}).values()
        for column in (self._keys, self._key_ends, *self._columns.values(), *texts):
            column.close()
        self._problems.close()

    def _keep(self, shard_bytes: int, texts: dict[str, list[bytes]] | None) -> None:
        self._shard_bytes += shard_bytes
        if texts is None:
            self._remove_texts()
            return
        self._text_bytes += sum(len(text) for some in texts.values() for text in some)
        self._forget_texts(final=False)
        for field, some in texts.items():
            if self._texts is None:
                return
            if field not in self._texts:
                self._texts[field] = _Column(self.folder / f"texts.{field}.npy", "u1")
            self._texts[field].append(np.frombuffer(b"".join(some), np.uint8))

    def _forget_texts(self, final: bool) -> None:
        """Remove the kept texts if they are too many."""
        if not may_be_kept(self._text_bytes, self._shard_bytes, final):
            self._remove_texts()

    def _remove_texts(self) -> None:
        for field, column in (self._texts or {}).items():
            column.close()
            (self.folder / f"texts.{field}.npy").unlink()
        self._texts = None

    def _check_fields(self, field: str, shard: str, columns: Iterable[str]) -> None:
        """Refuse a new ``field`` beyond `MAX_FIELDS`: each takes memory for every sample of the
        shard.
        """
        if len(self._columns.keys() | columns | {field}) > MAX_FIELDS:
            raise UserError(
                f"{shard}: field {field!r} is one of more than {MAX_FIELDS}; if the dots in names "
                "belong to keys, index with --key-dots last, or write other dots in names as '_'"
            )

    def _column(self, field: str) -> _Column:
        assert FIELD_NAME.fullmatch(field), field
        if field not in self._columns:
            self._columns[field] = _Column(self.folder / f"field.{field}.npy", FACTS)
        return self._columns[field]


@contextmanager
def replace_index(
    root: Path, base: Path | str | None = None, key_dots: str = ""
) -> Iterator[IndexWriter]:
    """A writer whose index takes the place of ``root``'s when the block ends well; otherwise
    nothing changes.

    ``base`` and ``key_dots`` are those of `IndexWriter`.

    Raises `UserError` when ``root`` cannot be written.
    """
    try:
        scratch = tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=root)
    except OSError as error:
        raise UserError(
            f"{root}: the index cannot be written there ({error.strerror}); name a folder for it "
            "with --out"
        ) from None
    with scratch:
        # One level below the scratch folder, whose access rights are private.
        fresh = Path(scratch.name) / "new"
        fresh.mkdir()
        writer = IndexWriter(fresh, base, key_dots)
        try:
            yield writer
            writer.finish()
        finally:
            writer.abandon()
        _swap(fresh, root / FOLDER, Path(scratch.name) / "old")


def _swap(fresh: Path, final: Path, old: Path) -> None:
    # A folder cannot be renamed onto a full one. Whoever has the old files mapped keeps them.
    if final.exists():
        final.rename(old)
    try:
        fresh.rename(final)
    except OSError:
        if old.exists():
            old.rename(final)
        raise


class _Column:
    """A one-dimensional .npy file of a length that is known only at the end."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self._dtype = np.dtype(dtype)
        self._file = open(path, "wb")  # noqa: SIM115 - closed in finish
        self.length = 0
        self._start = self._write_header()

    def append(self, values: NDArray[Any], at: int | None = None) -> None:
        """Write ``values`` from element ``at`` on (default: the end); what is skipped is zero."""
        at = self.length if at is None else at
        assert values.dtype == self._dtype and at >= self.length
        self._file.seek(self._start + at * self._dtype.itemsize)
        self._file.write(values.tobytes())
        self.length = at + len(values)

    def finish(self, length: int) -> None:
        """Complete the file at ``length`` elements; those never written are zero."""
        assert length >= self.length
        self.length = length
        self._file.truncate(self._start + length * self._dtype.itemsize)
        self._file.seek(0)
        # numpy leaves room in the header for any length of the first axis.
        assert self._write_header() == self._start
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()

    def close(self) -> None:
        self._file.close()

    def _write_header(self) -> int:
        described = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": described, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()
