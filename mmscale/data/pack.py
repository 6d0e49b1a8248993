"""Writes WebDataset shards: `ShardWriter` for code that has the bytes, `pack` for folders and tables."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from tqdm import tqdm

from mmscale.config import MediaConfig
from mmscale.data.index import build_index, has_index
from mmscale.data.manifest import FIELD_NAME, Manifest
from mmscale.data.sources import Row, read_source
from mmscale.data.tar import BLOCK, name_fault, split_name
from mmscale.errors import UserError
from mmscale.prf import Permutation, derive_key


class ShardWriter:
    """Writes samples to ``directory/prefix-000000.tar`` and on. A context manager.

    The bytes depend on nothing but what is written: no times, owners or rights. A shard appears under its
    name only when it is complete, and when the block ends with an exception all shards of this writer are
    removed again.

    Args:
        directory: made if it does not exist.
        prefix: of the shards' names.
        samples_per_shard: most samples of one shard.
        max_shard_bytes: a shard is closed before it would grow beyond this; None: no limit. One sample that
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
            raise UserError(f"prefix: {prefix!r} cannot begin the name of a file; use letters and digits")
        self._directory, self._prefix = Path(directory), prefix
        self._samples_per_shard, self._max_shard_bytes = samples_per_shard, max_shard_bytes
        self.paths: list[Path] = []
        self._file: BinaryIO | None = None
        self._tar: tarfile.TarFile | None = None
        self._keys: set[str] = set()

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
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

        Raises `UserError` when the key is not one that readers would give back (it holds a dot in its last
        part, points outside, is taken in this shard), a field's name is not allowed, or a shard of that name
        exists already.
        """
        _check_names(key, fields)
        if self._is_full(fields):
            self._finish_shard()
        if self._tar is None:
            self._start_shard()
        assert self._tar is not None
        if key in self._keys:
            raise UserError(
                f"{self._path()}: key {key!r} is written twice; give every sample a key of its own"
            )
        self._keys.add(key)
        for field, data in fields.items():
            member = tarfile.TarInfo(f"{key}.{field}")
            member.size = len(data)
            member.mode = 0o644
            self._tar.addfile(member, io.BytesIO(data))

    def _is_full(self, fields: dict[str, bytes]) -> bool:
        if self._file is None:
            return False
        if len(self._keys) == self._samples_per_shard:
            return True
        # Header, payload and padding of each; two blocks of end marker.
        more = sum(BLOCK - (-len(data) // BLOCK) * BLOCK for data in fields.values()) + 2 * BLOCK
        return self._max_shard_bytes is not None and self._file.tell() + more > self._max_shard_bytes

    def _path(self) -> Path:
        return self._directory / f"{self._prefix}-{len(self.paths):06d}.tar"

    def _unfinished(self) -> Path:
        return self._directory / f".{self._path().name}.{os.getpid()}.tmp"

    def _start_shard(self) -> None:
        if self._path().exists():
            raise UserError(f"{self._path()}: exists already; name an empty folder or remove the shard")
        self._keys.clear()
        self._file = open(self._unfinished(), "wb")  # noqa: SIM115 - closed when the shard is full
        # pax is ustar, with extra headers only for names that are long or not ASCII.
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8")

    def _finish_shard(self) -> None:
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._unfinished(), self._path())
        self.paths.append(self._path())
        self._tar = self._file = None

    def _abandon(self) -> None:
        if self._file is not None:
            self._file.close()
            self._unfinished().unlink(missing_ok=True)
            self._tar = self._file = None
        for path in self.paths:
            path.unlink(missing_ok=True)
        self.paths.clear()


def pack(
    source: Path,
    out: Path,
    *,
    shuffle_seed: int = 0,
    samples_per_shard: int = 1000,
    media: MediaConfig | None = None,
    progress: bool = True,
) -> Manifest:
    """Write the samples of ``source`` to shards in ``out`` and index them.

    ``source`` is a folder (files of one stem are one sample, the first sub-folder is its ``json.label``), a
    ``.csv`` with a header row or a ``.jsonl``, with columns ``image`` and ``audio`` (paths relative to the
    table), ``text``, ``cls`` and ``key``; all other columns become the sample's json. Media files are stored
    as they are. Samples are shuffled by ``shuffle_seed``, so that neighbours in a shard are no relatives; the
    same source and seed give the same shards, byte for byte.

    Raises `UserError` naming the file or row and the remedy; ``out`` then holds no new shard.
    """
    media = media or MediaConfig()
    source, out = Path(source), Path(out)
    _check_out(out)
    rows = read_source(source, media, out)
    order = Permutation(derive_key("pack", shuffle_seed), len(rows))(np.arange(len(rows)))
    with ShardWriter(out, samples_per_shard=samples_per_shard) as writer:
        for position in tqdm(order.tolist(), "pack", unit="sample", disable=not progress):
            _write_row(writer, rows[position], media)
    return build_index(out, media, progress)


def _write_row(writer: ShardWriter, row: Row, media: MediaConfig) -> None:
    fields = {field: _read(path, media, row.where) for field, path in row.files.items()} | row.data
    try:
        writer.write(row.key, fields)
    except UserError as error:
        raise UserError(f"{row.where}: {error}") from None


def _read(path: Path, media: MediaConfig, where: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(media.max_file_bytes + 1)
    except OSError as error:
        raise UserError(f"{where}: {path}: cannot be read ({error.strerror}); check the file") from None
    if len(data) > media.max_file_bytes:
        raise UserError(f"{where}: {path}: grew over media.max_file_bytes while packing; pack again")
    return data


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file; name a folder for the shards")
    found = next(out.glob("*.tar"), None)
    if found is not None:
        raise UserError(f"{out}: already holds shards ({found.name}); name an empty folder or remove them")
    if has_index(out):
        raise UserError(f"{out}: already holds an index; name an empty folder or remove it")


def _check_names(key: str, fields: dict[str, bytes]) -> None:
    if not fields:
        raise UserError(f"key {key!r}: a sample without fields; give it at least one")
    for field in fields:
        if not FIELD_NAME.fullmatch(field):
            raise UserError(f"key {key!r}: field {field!r} is not 1 to 64 of a-z 0-9 _ . -; rename it")
        name = f"{key}.{field}"
        fault = name_fault(name.encode("utf-8", "surrogatepass"))
        if fault is not None:
            raise UserError(f"key {key!r}: {fault}; use a shorter, relative key of plain text")
        if split_name(name) != (key, field):
            raise UserError(
                f"key {key!r}: readers would not give it back; write '_' for dots in its last part"
            )
