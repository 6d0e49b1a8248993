"""What one shard brings to an index: a pure function of its bytes, for any process or machine."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mmscale.config import MediaConfig
from mmscale.data.account import Account
from mmscale.data.index.index_files import FIELD_NAME, Shard
from mmscale.data.index.kept_texts import is_text, too_many_of_shard
from mmscale.data.index.probe import kind_of, probe
from mmscale.data.index.sample_groups import SampleMembers, each_sample
from mmscale.data.index.sample_keys import AUTO, FIRST
from mmscale.data.index.shard_notes import ShardNotes
from mmscale.data.index.shard_reader import HashingReader, Stamp, open_place
from mmscale.data.index.tar_headers import Member, scan_source
from mmscale.errors import SampleFault, UserError

_BAD_NAME = "a field is named with 1 to 64 of a-z 0-9 _ . - only; rename the file"

Facts = tuple[int, int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to index.

    Attributes:
        base: its folder, or the URL of it.
        key_dots: which dot of a member's name ends the key (`sample_keys`).
    """

    base: Path | str
    name: str
    media: MediaConfig
    key_dots: str = FIRST


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
        account: what of it was not simply taken.
    """

    shard: Shard
    stamp: Stamp
    samples: list[tuple[str, dict[str, Facts]]]
    problems: list[ShardProblem] = field(default_factory=list)
    texts: dict[str, list[bytes]] | None = field(default_factory=dict)
    account: Account = field(default_factory=Account)


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
    text_bytes, key_dots = 0, ""
    notes = ShardNotes(task.name)
    with open_place(task.base, task.name) as opened:
        reader = HashingReader(opened.file, told)
        members = scan_source(
            reader, opened.size, opened.place, task.key_dots, notes.left_out, notes.forgiven
        )
        take = _MemberTaker(reader, task.media, opened.size, notes)
        for sample in each_sample(members, task.key_dots, take, opened.place):
            take.held = 0
            if sample.apart:
                key_dots = task.key_dots
            faults = _faults(sample)
            if faults:
                problems += faults
                notes.broken(sample.key, f"{faults[0].field}: {faults[0].reason}")
                continue
            if sample.apart and task.key_dots == AUTO:
                notes.apart(sample.key)
            samples.append((sample.key, {field: taken.facts for field, _, taken in sample.members}))
            payloads = [(field, taken.text) for field, _, taken in sample.members]
            text_bytes += sum(len(text) for _, text in payloads if text is not None)
            if take.too_many or too_many_of_shard(text_bytes, opened.size):
                texts = None
            if texts is not None:
                for field, text in payloads:
                    if text is not None:
                        texts.setdefault(field, []).append(text)
    shard = Shard(task.name, opened.size, reader.hexdigest(), len(samples), key_dots)
    return IndexedShard(
        shard=shard, stamp=opened.stamp, samples=samples, problems=problems, texts=texts,
        account=notes.finish(),
    )  # fmt: skip


class _MachineTrouble(Exception):
    """The text says what, and the remedy."""


@dataclass(slots=True)
class _TakenMember:
    """``facts`` of one member, and its payload if it is a ``text``; or the ``fault`` it has."""

    facts: Facts
    text: bytes | None = None
    fault: str = ""


class _MemberTaker:
    """Takes what the index needs of each member while its payload is at hand.

    ``held`` counts the bytes of texts of samples that are not complete; beyond what is kept of a
    shard they are ``too_many``, and let go.
    """

    def __init__(
        self, reader: HashingReader, media: MediaConfig, size: int, notes: ShardNotes
    ) -> None:
        self._reader, self._media, self._size, self._notes = reader, media, size, notes
        self.held, self.too_many = 0, False

    def __call__(self, member: Member) -> _TakenMember:
        try:
            facts, text = _facts(self._reader, member, self._media)
        except SampleFault as fault:
            return _TakenMember((member.offset, member.size, 0, 0, 0), fault=str(fault))
        self._notes.member(member.name, member.field, text)
        if text is not None:
            self.held += len(text)
            if too_many_of_shard(self.held, self._size):
                self.too_many, text = True, None
        return _TakenMember(facts, text)


def _faults(sample: SampleMembers[_TakenMember]) -> list[ShardProblem]:
    faults = []
    for name, member, taken in sample.members:
        reason = taken.fault if FIELD_NAME.fullmatch(name) else _BAD_NAME
        if reason:
            faults.append(ShardProblem(sample.key, member.offset, name, reason))
    return faults


def _facts(reader: HashingReader, member: Member, media: MediaConfig) -> tuple[Facts, bytes | None]:
    """Facts of the member whose payload ``reader`` stands at, and that payload if it is a text."""
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
