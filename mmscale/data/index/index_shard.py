"""What one shard brings to an index: a pure function of its bytes, for any process or machine."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from mmscale.config import MediaConfig
from mmscale.data.index.index_files import FIELD_NAME, Shard
from mmscale.data.index.kept_texts import is_text, too_many_of_shard
from mmscale.data.index.probe import kind_of, probe
from mmscale.data.index.shard_reader import HashingReader, Stamp, open_place
from mmscale.data.index.tar_headers import Member, scan_source
from mmscale.errors import SampleFault, UserError

Facts = tuple[int, int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to index. ``base``: its folder, or the URL of it."""

    base: Path | str
    name: str
    media: MediaConfig


@dataclass(frozen=True)
class ShardProblem:
    """A member that cannot be used; ``offset`` is of its payload, bytes."""

    key: str
    offset: int
    field: str
    reason: str


@dataclass(kw_only=True)
class IndexedShard:
    """A shard's part of an index.

    Attributes:
        stamp: by which the next pass knows whether it has changed.
        samples: those that can be used: (key, values of `FACTS` by field).
        texts: by field, of the samples that have it, in their order; None: too many to be kept.
    """

    shard: Shard
    stamp: Stamp
    samples: list[tuple[str, dict[str, Facts]]]
    problems: list[ShardProblem] = field(default_factory=list)
    texts: dict[str, list[bytes]] | None = field(default_factory=dict)


@dataclass(frozen=True)
class BadShard:
    """A shard that cannot be indexed; ``reason`` names it, and the remedy."""

    name: str
    reason: str


def index_shard(
    task: ShardTask, told: Callable[[int], object] = lambda _: None
) -> IndexedShard | BadShard:
    """Read one shard, front to back. ``told`` is called with every number of bytes read.

    Raises `UserError` for what is the machine's trouble, not the shard's.
    """
    try:
        return _index(task, told)
    except _MachineTrouble as error:
        raise UserError(str(error)) from None
    except UserError as error:
        return BadShard(task.name, str(error))


def _index(task: ShardTask, told: Callable[[int], object]) -> IndexedShard:
    samples: list[tuple[str, dict[str, Facts]]] = []
    problems: list[ShardProblem] = []
    texts: dict[str, list[bytes]] | None = {}
    text_bytes = 0
    with open_place(task.base, task.name) as opened:
        reader = HashingReader(opened.file, told)
        members = scan_source(reader, opened.size, opened.place)
        for key, own in groupby(members, key=lambda member: member.key):
            before = len(problems)
            fields: dict[str, Facts] = {}
            payloads: dict[str, bytes] = {}
            for member in own:
                try:
                    fields[member.field], text = _facts(reader, member, task.media)
                except SampleFault as fault:
                    problems.append(ShardProblem(key, member.offset, member.field, str(fault)))
                    continue
                if text is not None:
                    payloads[member.field] = text
            if len(problems) == before:
                samples.append((key, fields))
                text_bytes += sum(map(len, payloads.values()))
                if too_many_of_shard(text_bytes, opened.size):
                    texts = None
                if texts is not None:
                    for name, text in payloads.items():
                        texts.setdefault(name, []).append(text)
    shard = Shard(task.name, opened.size, reader.hexdigest(), len(samples))
    return IndexedShard(
        shard=shard, stamp=opened.stamp, samples=samples, problems=problems, texts=texts
    )


class _MachineTrouble(Exception):
    """The text says what, and the remedy."""


def _facts(reader: HashingReader, member: Member, media: MediaConfig) -> tuple[Facts, bytes | None]:
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
        raise _MachineTrouble(f"{member.name}: {error}") from None
    text = data if is_text(member.field) else None
    return (member.offset, member.size, zlib.crc32(data), *facts), text
