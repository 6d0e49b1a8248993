"""Indexing a folder of shards in one sequential pass, and checking shards against their index."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mmscale.config import MediaConfig
from mmscale.data.fields import kind_of, probe
from mmscale.data.manifest import FACTS, Manifest, Shard, allowed_field, write_manifest
from mmscale.data.tar import Member, scan
from mmscale.errors import SampleFault, UserError

_CHUNK = 1 << 22  # bytes


def build_index(directory: Path, media: MediaConfig, progress: bool = True) -> Manifest:
    """Index every ``*.tar`` of ``directory`` and return the new manifest.

    A member that cannot be used (not UTF-8, no picture, over a limit) takes its whole sample out; key, shard,
    offset and reason go to ``index/problems.jsonl``, and their number to ``Manifest.problems``.

    Raises:
        UserError: there is no shard, a shard breaks the tar rules (see `tar.scan`), or no sample is usable.
    """
    paths = sorted(directory.glob("*.tar"))
    if not paths:
        raise UserError(f"{directory}: no .tar shards here; name a folder of shards")
    shards, keys, shard_of = [], list[str](), list[int]()
    rows: list[dict[str, tuple[int, ...]]] = []
    problems: list[dict[str, Any]] = []
    total = sum(path.stat().st_size for path in paths)
    with tqdm(total=total, unit="B", unit_scale=True, desc="index", disable=not progress) as bar:
        for number, path in enumerate(paths):
            before = len(rows)
            for key, sample in _samples(path, media, problems):
                keys.append(key)
                shard_of.append(number)
                rows.append(sample)
            size = path.stat().st_size
            shards.append(Shard(path.name, size, _sha256(path), len(rows) - before))
            bar.update(size)
    if not rows:
        first = f"; the first: {problems[0]['key']}: {problems[0]['reason']}" if problems else ""
        raise UserError(f"{directory}: no usable sample in {len(paths)} shards{first}")
    columns = {}
    for field in sorted({field for row in rows for field in row}):
        column = np.zeros(len(rows), dtype=FACTS)
        for at, row in enumerate(rows):
            if field in row:
                column[at] = row[field]
        columns[field] = column
    return write_manifest(directory, shards, keys, shard_of, columns, problems)


def verify(directory: Path, progress: bool = True) -> list[str]:
    """Every fault of the shards of ``directory`` against its index, one line each; empty if there is none.

    Raises:
        UserError: there is no index, or a shard is missing.
    """
    manifest = Manifest.open(directory)
    faults = []
    for number, shard in enumerate(tqdm(manifest.shard_facts(), unit="shard", desc="verify", disable=not progress)):
        path = directory / shard.name
        try:
            sizes = {member.offset: member.size for member in scan(path)}
        except UserError as error:
            faults.append(str(error))
            continue
        if _sha256(path) == shard.sha256:
            continue
        named = len(faults)
        with open(path, "rb") as file:
            for sample in np.nonzero(manifest.shard_of == number)[0].tolist():
                for field in manifest.fields:
                    facts = manifest.column(field)[sample]
                    if facts["offset"] == 0:
                        continue
                    file.seek(int(facts["offset"]))
                    same_place = sizes.get(int(facts["offset"])) == int(facts["size"])
                    if not same_place or zlib.crc32(file.read(int(facts["size"]))) != facts["crc"]:
                        faults.append(f"{path}: {manifest.key(sample)}.{field} differs from the index")
        if len(faults) == named:
            faults.append(f"{path}: differs from the index outside its samples (SHA-256)")
    return faults


def _samples(
    path: Path, media: MediaConfig, problems: list[dict[str, Any]]
) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """(key, facts by field) of every usable sample of a shard."""
    key: str | None = None
    fields: dict[str, tuple[int, ...]] = {}
    broken = False
    with open(path, "rb") as file:
        for member in scan(path):
            if member.key != key:
                if key is not None and fields and not broken:
                    yield key, fields
                key, fields, broken = member.key, {}, False
            kind = kind_of(member.field)
            if kind is None or not allowed_field(member.field):
                continue  # nothing here ever reads it, so it is not indexed
            try:
                fields[member.field] = _facts(file, member, kind, media)
            except SampleFault as fault:
                broken = True
                where = {"key": member.key, "shard": path.name, "offset": member.offset, "field": member.field}
                problems.append({**where, "reason": str(fault)})
    if key is not None and fields and not broken:
        yield key, fields


def _facts(file: Any, member: Member, kind: str, media: MediaConfig) -> tuple[int, ...]:
    if member.size > media.max_file_bytes:
        raise SampleFault(f"{member.size} bytes, more than media.max_file_bytes={media.max_file_bytes}")
    file.seek(member.offset)
    data = file.read(member.size)
    return (member.offset, member.size, zlib.crc32(data), *probe(kind, data, media))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
