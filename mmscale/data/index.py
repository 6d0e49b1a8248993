"""Builds and verifies the index of a folder of shards, in one sequential pass that decodes nothing."""

from __future__ import annotations

import hashlib
import os
import zlib
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from mmscale.config import MediaConfig
from mmscale.data.manifest import FIELD_NAME, FOLDER, Manifest, Shard
from mmscale.data.manifest_writer import ManifestWriter, replace_index
from mmscale.data.probe import kind_of, probe
from mmscale.data.tar import Member, open_shard, scan_source
from mmscale.errors import SampleFault, UserError

_CHUNK = 1 << 20

Facts = tuple[int, int, int, int, int]


def has_index(directory: Path) -> bool:
    """Whether ``directory`` holds a finished index."""
    return (directory / FOLDER / "manifest.json").is_file()


def build_index(directory: Path, media: MediaConfig, progress: bool = True) -> Manifest:
    """Index every ``.tar`` of ``directory`` and replace the index that is there.

    A member that cannot be used (unreadable header, over a limit of ``media``, text that is not UTF-8 or not
    JSON) leaves its whole sample out and is listed in ``index/problems.jsonl``; `Manifest.problems` gives
    these as one-line warnings. ``progress`` shows a bar in bytes on stderr.

    Raises `UserError` for what `tar.scan` does, when there is no shard, when the folder cannot be written,
    and when no sample is usable (its problems are on disk then).
    """
    directory = Path(directory)
    paths = _shards_of(directory)
    total = sum(path.stat().st_size for path in paths)
    with replace_index(directory) as writer, _bar("index", total, progress) as bar:
        for path in paths:
            _index_shard(path, media, writer, bar)
    return Manifest.open(directory)


def verify(directory: Path, progress: bool = False) -> list[str]:
    """Compare every byte of the shards with the index; returns one line per fault, naming shard and key.

    Checked: the strict rules of `tar.scan`, each shard's size and SHA-256, each field's place and CRC-32,
    shards that are missing or not indexed. Members already listed as problems are not repeated.

    Raises `UserError` when there is no index or it is damaged itself.
    """
    directory = Path(directory)
    manifest = Manifest.load(directory)
    listed = {shard.name for shard in manifest.entries}
    faults = [f"{path}: not in the index" for path in _shards_of(directory) if path.name not in listed]
    with _bar("verify", sum(shard.bytes for shard in manifest.entries), progress) as bar:
        first = 0
        for shard in manifest.entries:
            faults += _verify_shard(manifest, shard, range(first, first + shard.samples), bar)
            first += shard.samples
    return faults


class _HashingReader:
    """One forward pass over a shard; whatever is read or skipped is hashed. A `tar.Source`."""

    def __init__(self, file: BinaryIO, bar: tqdm[Any]) -> None:
        self._file, self._bar, self._at = file, bar, 0
        self._sha256 = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self._sha256.update(data)
        self._bar.update(len(data))
        self._at += len(data)
        return data

    def seek(self, offset: int, /) -> int:
        assert offset >= self._at
        while self._at < offset and self.read(min(_CHUNK, offset - self._at)):
            pass
        return self._at

    def crc(self, size: int) -> int:
        """CRC-32 of the next ``size`` bytes."""
        crc, end = 0, self._at + size
        while self._at < end and (data := self.read(min(_CHUNK, end - self._at))):
            crc = zlib.crc32(data, crc)
        return crc

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def _shards_of(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder; name the folder that holds the .tar shards")
    paths = sorted(
        path for path in directory.glob("*.tar") if path.is_file() and not path.name.startswith(".")
    )
    if not paths:
        packed = sorted(directory.glob("*.tar.*")) + sorted(directory.glob("*.tgz"))
        remedy = "decompress them first" if packed else "make some with `mmscale data pack`"
        found = f"; {packed[0].name} is compressed" if packed else ""
        raise UserError(f"{directory}: no .tar shards{found}; {remedy}")
    for path in paths:
        try:
            path.name.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{os.fsencode(path)!r}: the name is not UTF-8; rename the shard") from None
    return paths


def _bar(what: str, total: int, progress: bool) -> tqdm[Any]:
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=not progress)


def _index_shard(path: Path, media: MediaConfig, writer: ManifestWriter, bar: tqdm[Any]) -> None:
    samples: list[tuple[str, dict[str, tuple[int, ...]]]] = []
    with open_shard(path) as file:
        size = os.fstat(file.fileno()).st_size
        reader = _HashingReader(file, bar)
        for key, members in groupby(scan_source(reader, size, path), key=lambda member: member.key):
            fields: dict[str, tuple[int, ...]] = {}
            usable = True
            for member in members:
                try:
                    fields[member.field] = _facts(reader, member, media)
                except SampleFault as fault:
                    writer.add_problem(key, path.name, member.offset, member.field, str(fault))
                    usable = False
            if usable:
                samples.append((key, fields))
    writer.add_shard(Shard(path.name, size, reader.hexdigest(), len(samples)), samples)


def _facts(reader: _HashingReader, member: Member, media: MediaConfig) -> Facts:
    """Facts of the member whose payload ``reader`` stands at."""
    if not FIELD_NAME.fullmatch(member.field):
        raise SampleFault("a field is named with 1 to 64 of a-z 0-9 _ . - only; rename the file")
    kind = kind_of(member.field)
    if kind is None:
        return member.offset, member.size, reader.crc(member.size), 0, 0
    if member.size > media.max_file_bytes:
        raise SampleFault(f"{member.size} bytes are over media.max_file_bytes={media.max_file_bytes}")
    data = reader.read(member.size)
    return member.offset, member.size, zlib.crc32(data), *probe(kind, data, media)


def _verify_shard(manifest: Manifest, shard: Shard, rows: range, bar: tqdm[Any]) -> list[str]:
    path = manifest.root / shard.name
    expected = _expected(manifest, rows)
    faults: list[str] = []
    try:
        with open_shard(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != shard.bytes:
                faults.append(f"{path}: {size} bytes, but {shard.bytes} when it was indexed")
            reader = _HashingReader(file, bar)
            for member in scan_source(reader, size, path):
                entry = expected.pop((member.key, member.field), None)
                if entry is None:
                    continue
                crc = reader.crc(member.size)
                if entry != (member.offset, member.size, crc):
                    where = f"{path}: byte {member.offset}: sample {member.key!r}"
                    faults.append(f"{where}: {member.field}: differs from the index")
    except UserError as error:
        return [*faults, str(error)]
    if reader.hexdigest() != shard.sha256:
        faults.append(f"{path}: SHA-256 differs from the index")
    faults += [f"{path}: sample {key!r}: {field}: in the index, not in the shard" for key, field in expected]
    return faults


def _expected(manifest: Manifest, rows: range) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(offset, size, CRC-32) by (key, field) of the samples ``rows``."""
    keys = [manifest.key(row) for row in rows]
    expected = {}
    for field in manifest.fields:
        facts = manifest.column(field)[rows.start : rows.stop]
        for key, offset, size, crc in zip(
            keys, facts["offset"].tolist(), facts["size"].tolist(), facts["crc"].tolist(), strict=True
        ):
            if offset:
                expected[key, field] = (offset, size, crc)
    return expected
