"""Builds and verifies the index of shards, local or remote, in one sequential pass that decodes
nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from mmscale.config import CacheConfig, MediaConfig
from mmscale.data.index.index_files import FIELD_NAME, FOLDER, Shard
from mmscale.data.index.index_writer import IndexWriter, replace_index
from mmscale.data.index.kept_texts import is_text
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.probe import kind_of, probe
from mmscale.data.index.tar_headers import Member, open_shard, scan, scan_source
from mmscale.data.storage.remote_file import CHUNK, check_remote, list_shards, open_remote
from mmscale.data.storage.shard_patterns import expand, group_by_folder
from mmscale.data.storage.url import is_url, join_url
from mmscale.errors import SampleFault, UserError

_CHUNK = 1 << 20
_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")

Facts = tuple[int, int, int, int, int]


def has_index(directory: Path) -> bool:
    """Whether ``directory`` holds a finished index."""
    return (directory / FOLDER / "manifest.json").is_file()


def index_sources(
    sources: list[str], out: Path | None, media: MediaConfig, progress: bool = True
) -> Manifest:
    """Index one local folder (`build_index`), or remote shards into ``out`` (`build_remote_index`).

    Raises `UserError` for what they do, and for sources and ``out`` that do not go together.
    """
    names = expand(sources)
    if any(is_url(name) for name in names):
        if out is None:
            raise UserError(
                "--out: missing; name the folder that is to hold the index of the remote shards"
            )
        return build_remote_index(names, out, media, progress)
    if out is not None:
        raise UserError(
            f"--out {out}: the index of local shards lies beside them; leave --out away"
        )
    if len(names) != 1:
        raise UserError(f"{names[1]}: a second local folder; index one at a time")
    return build_index(Path(names[0]), media, progress)


def build_index(directory: Path, media: MediaConfig, progress: bool = True) -> Manifest:
    """Index every ``.tar`` of ``directory`` and replace the index that is there.

    A member that cannot be used (unreadable header, over a limit of ``media``, text that is not
    UTF-8 or not JSON) leaves its whole sample out and is listed in ``index/problems.jsonl``;
    `Manifest.problems` gives these as one-line warnings. ``progress`` shows a bar in bytes on
    stderr.

    Raises `UserError` for what `tar_headers.scan` does, when there is no shard, when the folder
    cannot be written, and when no sample is usable (its problems are on disk then).
    """
    directory = Path(directory)
    paths = _shards_of(directory)
    total = sum(path.stat().st_size for path in paths)
    with replace_index(directory) as writer, _bar("index", total, progress) as bar:
        for path in paths:
            _index_shard(directory, path.name, media, writer, bar)
    return Manifest.open(directory)


def build_remote_index(
    names: list[str], out: Path, media: MediaConfig, progress: bool = True
) -> Manifest:
    """`build_index` for remote shards of one folder, given by URL: writes ``out/index/`` and no
    shard.

    Every shard is read once, front to back. The index names their folder, so ``out`` stands for
    them in a config; it has the digest that `build_index` gives to a copy of the shards.

    Raises `UserError` also when the shards do not share a folder or cannot be fetched.
    """
    (base, shards), *other_folders = group_by_folder(names)
    if other_folders or isinstance(base, Path):
        odd = base if isinstance(base, Path) else other_folders[0][0]
        raise UserError(
            f"{odd}: an index is of one remote folder; index each into an --out of its own"
        )
    shards = list_shards(base, CacheConfig().retries) if shards is None else sorted(shards)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be made ({error.strerror}); name another folder"
        ) from None
    if any(out.glob("*.tar")):
        raise UserError(f"--out {out}: holds shards of its own; name an empty folder")
    with replace_index(out, base) as writer, _bar("index", 0, progress) as bar:
        for name in shards:
            _index_shard(base, name, media, writer, bar)
    return Manifest.open(out)


def verify_shards(directory: Path, progress: bool = False) -> list[str]:
    """Compare every byte of the shards with the index; returns one line per fault, naming shard and
    key.

    Checked: the strict rules of `tar_headers.scan`, each shard's size and SHA-256, each field's
    place and CRC-32, shards that are missing or not indexed. Members already listed as problems are
    not repeated. Remote shards are read where they are, not from the cache.

    Raises `UserError` when there is no index or it is damaged itself.
    """
    directory = Path(directory)
    manifest = Manifest.load(directory)
    listed = {shard.name for shard in manifest.entries}
    faults: list[str] = []
    if isinstance(manifest.base, Path):
        faults += [
            f"{path}: not in the index" for path in _shards_of(directory) if path.name not in listed
        ]
    else:
        check_remote(manifest.base)
    with _bar("verify", sum(shard.bytes for shard in manifest.entries), progress) as bar:
        first = 0
        for shard in manifest.entries:
            faults += _verify_shard(manifest, shard, range(first, first + shard.samples), bar)
            first += shard.samples
    return faults


class _HashingReader:
    """A `tar_headers.Source`: one forward pass over a shard; whatever is read or skipped is
    hashed.
    """

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
    files = sorted(
        path for path in directory.iterdir() if path.is_file() and not path.name.startswith(".")
    )
    paths = [path for path in files if path.suffix == ".tar"]
    for path in files:
        if path.name.endswith(_COMPRESSED):
            next(scan(path), None)  # refuses what is compressed, with the command that repairs it
            raise UserError(f"{path}: not compressed, against its name; rename it to .tar")
    if not paths:
        raise UserError(f"{directory}: no .tar shards; make some with `mmscale data pack`")
    for path in paths:
        try:
            path.name.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"{os.fsencode(path)!r}: the name is not UTF-8; rename the shard"
            ) from None
    return paths


def _bar(what: str, total: int, progress: bool) -> tqdm[Any]:
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=not progress)


@contextmanager
def _open(base: Path | str, name: str) -> Iterator[tuple[BinaryIO, int, Path | str]]:
    """An open shard, its bytes, and what to call it in messages."""
    if isinstance(base, Path):
        with open_shard(base / name) as local:
            yield local, os.fstat(local.fileno()).st_size, base / name
    else:
        url = join_url(base, name)
        with (
            open_remote(url, CacheConfig().retries) as remote,
            io.BufferedReader(remote, CHUNK) as file,
        ):
            yield file, remote.size, url


def _index_shard(
    base: Path | str, name: str, media: MediaConfig, writer: IndexWriter, bar: tqdm[Any]
) -> None:
    samples: list[tuple[str, dict[str, tuple[int, ...]]]] = []
    texts: dict[str, list[bytes]] = {}
    with _open(base, name) as (file, size, place):
        if isinstance(base, str):
            bar.total = (bar.total or 0) + size  # of local shards the sum is known at the start
        reader = _HashingReader(file, bar)
        for key, members in groupby(
            scan_source(reader, size, place), key=lambda member: member.key
        ):
            fields: dict[str, tuple[int, ...]] = {}
            own: dict[str, bytes] = {}
            usable = True
            for member in members:
                try:
                    fields[member.field], text = _facts(reader, member, media)
                    if text is not None and writer.wants_texts:
                        own[member.field] = text
                except SampleFault as fault:
                    writer.add_problem(key, name, member.offset, member.field, str(fault))
                    usable = False
            if usable:
                samples.append((key, fields))
                for field, text in own.items():
                    texts.setdefault(field, []).append(text)
    writer.add_shard(Shard(name, size, reader.hexdigest(), len(samples)), samples, texts)


def _facts(
    reader: _HashingReader, member: Member, media: MediaConfig
) -> tuple[Facts, bytes | None]:
    """Facts of the member whose payload ``reader`` stands at, and that payload if it is a text."""
    if not FIELD_NAME.fullmatch(member.field):
        raise SampleFault("a field is named with 1 to 64 of a-z 0-9 _ . - only; rename the file")
    kind = kind_of(member.field)
    if kind is None:
        return (member.offset, member.size, reader.crc(member.size), 0, 0), None
    if member.size > media.max_file_bytes:
        raise SampleFault(
            f"{member.size} bytes are over media.max_file_bytes={media.max_file_bytes}"
        )
    data = reader.read(member.size)
    try:
        facts = probe(kind, data, media)
    except UserError as error:  # the machine's trouble, which may be this member's doing
        raise UserError(f"{member.name}: {error}") from None
    text = data if is_text(member.field) else None
    return (member.offset, member.size, zlib.crc32(data), *facts), text


def _verify_shard(manifest: Manifest, shard: Shard, rows: range, bar: tqdm[Any]) -> list[str]:
    expected = _expected(manifest, rows)
    faults: list[str] = []
    try:
        with _open(manifest.base, shard.name) as (file, size, place):
            if size != shard.bytes:
                faults.append(f"{place}: {size} bytes, but {shard.bytes} when it was indexed")
            reader = _HashingReader(file, bar)
            for member in scan_source(reader, size, place):
                entry = expected.pop((member.key, member.field), None)
                if entry is None:
                    continue
                crc = reader.crc(member.size)
                if entry != (member.offset, member.size, crc):
                    where = f"{place}: byte {member.offset}: sample {member.key!r}"
                    faults.append(f"{where}: {member.field}: differs from the index")
    except UserError as error:
        return [*faults, str(error)]
    if reader.hexdigest() != shard.sha256:
        faults.append(f"{place}: SHA-256 differs from the index")
    faults += [
        f"{place}: sample {key!r}: {field}: in the index, not in the shard"
        for key, field in expected
    ]
    return faults


def _expected(manifest: Manifest, rows: range) -> dict[tuple[str, str], tuple[int, int, int]]:
    """(offset, size, CRC-32) by (key, field) of the samples ``rows``."""
    keys = [manifest.key(row) for row in rows]
    expected = {}
    for field in manifest.fields:
        facts = manifest.column(field)[rows.start : rows.stop]
        for key, offset, size, crc in zip(
            keys,
            facts["offset"].tolist(),
            facts["size"].tolist(),
            facts["crc"].tolist(),
            strict=True,
        ):
            if offset:
                expected[key, field] = (offset, size, crc)
    return expected
