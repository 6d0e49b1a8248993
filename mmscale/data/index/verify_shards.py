"""Comparing every byte of shards with their index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from mmscale.data.index.index_files import Shard
from mmscale.data.index.local_shards import shard_name, shards_of
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.sample_groups import each_sample
from mmscale.data.index.shard_reader import HashingReader, open_place
from mmscale.data.index.tar_headers import scan_source
from mmscale.data.storage.remote_file import check_remote
from mmscale.data.worker_pool import TaskPool, WorkerPool
from mmscale.errors import UserError


@dataclass(frozen=True)
class _VerifyTask:
    """One shard, whose samples are the rows from ``first`` on."""

    manifest: Manifest
    shard: Shard
    first: int


def verify_shards(
    directory: Path, progress: bool = False, *, pool: TaskPool | None = None
) -> list[str]:
    """Compare every byte of the shards with the index; returns one line per fault, naming shard and
    key.

    Checked: the strict rules of `tar_headers.scan`, each shard's size and SHA-256, each field's
    place and CRC-32, shards that are missing, not indexed, or were skipped by `build_index`.
    Members already listed as problems are not repeated. Remote shards are read where they are, not
    from the cache. ``pool`` reads several shards at a time.

    Raises `UserError` when there is no index or it is damaged itself.
    """
    directory = Path(directory)
    manifest = Manifest.load(directory)
    known = {shard.name for shard in manifest.entries} | manifest.skipped.keys()
    faults = [f"{reason} (skipped when it was indexed)" for reason in manifest.skipped.values()]
    if isinstance(manifest.base, Path):
        there = shards_of(manifest.base, manifest.has_folders)
        unknown = [path for path in there if shard_name(manifest.base, path) not in known]
        faults += [f"{path}: not in the index" for path in unknown]
    else:
        check_remote(manifest.base)
    ends = [0]
    for shard in manifest.entries:
        ends.append(ends[-1] + shard.samples)
    tasks = [
        _VerifyTask(manifest, shard, first)
        for shard, first in zip(manifest.entries, ends[:-1], strict=True)
    ]
    found: dict[int, list[str]] = {}
    total = sum(shard.bytes for shard in manifest.entries)
    with tqdm(total=total, desc="verify", unit="B", unit_scale=True, disable=not progress) as bar:
        for number, lines in (pool or WorkerPool(1)).run(_verify_shard, tasks, len(tasks)):
            found[number] = lines
            bar.update(tasks[number].shard.bytes)
    return faults + [line for number in sorted(found) for line in found[number]]


def _verify_shard(task: _VerifyTask) -> list[str]:
    manifest, shard = task.manifest, task.shard
    expected = _expected(manifest, range(task.first, task.first + shard.samples))
    faults: list[str] = []
    try:
        with open_place(manifest.base, shard.name) as opened:
            size, place = opened.size, opened.place
            if size != shard.bytes:
                faults.append(f"{place}: {size} bytes, but {shard.bytes} when it was indexed")
            reader = HashingReader(opened.file, lambda _: None)
            members = scan_source(reader, size, place, manifest.key_dots)
            for sample in each_sample(
                members, manifest.key_dots, lambda member: reader.crc(member.size), place
            ):
                for field, member, crc in sample.members:
                    entry = expected.pop((sample.key, field), None)
                    if entry not in (None, (member.offset, member.size, crc)):
                        where = f"{place}: byte {member.offset}: sample {sample.key!r}"
                        faults.append(f"{where}: {field}: differs from the index")
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
