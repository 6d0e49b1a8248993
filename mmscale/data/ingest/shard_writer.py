"""Samples to tar shards. The bytes depend on nothing but what is written: no times, owners or
rights.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Self

from mmscale.data.index.index_files import FIELD_NAME
from mmscale.data.index.sample_keys import split_name
from mmscale.data.index.tar_headers import BLOCK, name_fault
from mmscale.errors import UserError


def check_names(key: str, fields: list[str]) -> None:
    """Raise `UserError` unless strict readers would give back ``key`` and every one of
    ``fields``.
    """
    if not fields:
        raise UserError(f"key {key!r}: a sample without fields; give it at least one")
    for field in fields:
        if not FIELD_NAME.fullmatch(field):
            raise UserError(
                f"key {key!r}: field {field!r} is not 1 to 64 of a-z 0-9 _ . -; rename it"
            )
        name = f"{key}.{field}"
        fault = name_fault(name.encode("utf-8", "surrogatepass"))
        if fault is not None:
            raise UserError(f"key {key!r}: {fault}; use a shorter, relative key of plain text")
        if split_name(name) != (key, field):
            raise UserError(
                f"key {key!r}: readers would not give it back; write '_' for dots in its last part"
            )


def encode_sample(key: str, fields: dict[str, bytes]) -> bytes:
    """The tar members of one sample, whole blocks; a shard is these one after another and an end
    marker.

    The fields keep their order. Raises what `check_names` does.
    """
    check_names(key, list(fields))
    blocks = []
    for field, data in fields.items():
        member = tarfile.TarInfo(f"{key}.{field}")
        member.size = len(data)
        member.mode = 0o644
        # pax is ustar, with extra headers only for names that are long or not ASCII.
        blocks += [member.tobuf(tarfile.PAX_FORMAT, "utf-8"), data, bytes(-len(data) % BLOCK)]
    return b"".join(blocks)


class ShardFile:
    """One open shard, a new file at ``path``. ``size``: bytes written so far."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._file = open(path, "wb")  # noqa: SIM115 - closed by finish or close

    def add(self, sample: bytes) -> None:
        """Append what `encode_sample` or a range of another shard gave."""
        assert len(sample) % BLOCK == 0, "a sample is whole tar blocks"
        self._file.write(sample)
        self.size += len(sample)

    def finish(self) -> None:
        """Write the end marker, padded to a tar record, and wait until everything is on the
        disk.
        """
        self.add(bytes(2 * BLOCK))
        self.add(bytes(-self.size % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Close the file as it is."""
        self._file.close()


class ShardWriter:
    """Writes samples to ``directory/prefix-000000.tar`` and on. A context manager.

    A shard appears under its name only when it is complete, and when the block ends with an
    exception all shards of this writer are removed again.

    Args:
        directory: made if it does not exist. prefix: of the shards' names. samples_per_shard: most
        samples of one shard. max_shard_bytes: a shard is closed before it would grow beyond this;
        None: no limit. One sample that
            is larger still gets a shard of its own.

    Attributes:
        paths: the complete shards, in order.
    """

    def __init__(
        self,
        directory: Path,
        prefix: str = "shard",
        samples_per_shard: int = 1000,
        max_shard_bytes: int | None = None,
    ) -> None:
        if samples_per_shard < 1:
            raise UserError(f"samples_per_shard: {samples_per_shard} is below 1; use about 1000")
        if "/" in prefix or not prefix or prefix.startswith("."):
            raise UserError(
                f"prefix: {prefix!r} cannot begin the name of a file; use letters and digits"
            )
        self._directory, self._prefix = Path(directory), prefix
        self._samples_per_shard, self._max_shard_bytes = samples_per_shard, max_shard_bytes
        self.paths: list[Path] = []
        self._shard: ShardFile | None = None
        self._keys: set[str] = set()

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            try:
                self._finish_shard()
            except BaseException:
                self._abandon()
                raise
        else:
            self._abandon()

    def write(self, key: str, fields: dict[str, bytes]) -> None:
        """Append one sample; its fields keep their order.

        Raises `UserError` when the key is not one that readers would give back (it holds a dot in
        its last part, points outside, is taken in this shard), a field's name is not allowed, or a
        shard of that name exists already.
        """
        sample = encode_sample(key, fields)
        if self._is_full(len(sample)):
            self._finish_shard()
        if self._shard is None:
            self._shard = self._start_shard()
        if key in self._keys:
            raise UserError(
                f"{self._path()}: key {key!r} is written twice; give every sample a key of its own"
            )
        self._keys.add(key)
        self._shard.add(sample)

    def _is_full(self, more: int) -> bool:
        if self._shard is None:
            return False
        if len(self._keys) == self._samples_per_shard:
            return True
        end_marker = 2 * BLOCK
        return (
            self._max_shard_bytes is not None
            and self._shard.size + more + end_marker > self._max_shard_bytes
        )

    def _path(self) -> Path:
        return self._directory / shard_name(len(self.paths), self._prefix)

    def _unfinished(self) -> Path:
        return self._directory / f".{self._path().name}.{os.getpid()}.tmp"

    def _start_shard(self) -> ShardFile:
        if self._path().exists():
            raise UserError(
                f"{self._path()}: exists already; name an empty folder or remove the shard"
            )
        self._keys.clear()
        return ShardFile(self._unfinished())

    def _finish_shard(self) -> None:
        if self._shard is None:
            return
        self._shard.finish()
        os.replace(self._unfinished(), self._path())
        self.paths.append(self._path())
        self._shard = None

    def _abandon(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._unfinished().unlink(missing_ok=True)
            self._shard = None
        for path in self.paths:
            path.unlink(missing_ok=True)
        self.paths.clear()


def shard_name(number: int, prefix: str = "shard") -> str:
    """File name of shard ``number``, counted from 0."""
    return f"{prefix}-{number:06d}.tar"
