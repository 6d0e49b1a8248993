"""From the members of a shard to its samples, in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Generic, TypeVar

from mmscale.data.index.sample_keys import AUTO, FIRST, is_one_sample, split_name, webdataset_key
from mmscale.data.index.tar_headers import Member
from mmscale.errors import UserError

T = TypeVar("T")


@dataclass(slots=True)
class SampleMembers(Generic[T]):
    """One sample: its key, and by field its members, each with what was taken of it.

    ``apart``: webdataset's rule would have another key for it.
    """

    key: str
    members: list[tuple[str, Member, T]]
    apart: bool = False


def each_sample(
    members: Iterable[Member], key_dots: str, take: Callable[[Member], T], place: Path | str
) -> Iterator[SampleMembers[T]]:
    """The samples of a shard whose ``members`` come as `tar_headers.scan_source` gives them by the
    same rule.

    ``take`` is called for each member when its payload is at hand. Memory: what is taken of the
    members that share a webdataset key.

    Raises `UserError` naming the shard for a sample whose members do not stand together.
    """
    if key_dots != AUTO:
        for key, own in groupby(members, key=lambda member: member.key):
            taken = [(member.field, member, take(member)) for member in own]
            apart = key_dots != FIRST and key != webdataset_key(key)
            yield SampleMembers(key, taken, apart)
        return
    joined: set[str] = set()
    for key, own in groupby(members, key=lambda member: webdataset_key(member.key)):
        taken = [(member.field, member, take(member)) for member in own]
        if all(member.key == key for _, member, _ in taken):
            yield SampleMembers(key, taken)
            continue
        if key in joined:
            raise _again(place, taken[0][1], key)
        split = [(member.key, member.field) for _, member, _ in taken]
        fields = [_webdataset_field(member) for _, member, _ in taken]
        if is_one_sample(fields, split, key):
            joined.add(key)
            yield SampleMembers(
                key, [(field, one[1], one[2]) for field, one in zip(fields, taken, strict=True)]
            )
            continue
        yield from _apart(taken, key, place)


def _apart(
    taken: list[tuple[str, Member, T]], key: str, place: Path | str
) -> Iterator[SampleMembers[T]]:
    done: set[str] = set()
    for own, some in groupby(taken, key=lambda one: one[1].key):
        mine = list(some)
        if own in done:
            raise _again(place, mine[0][1], own)
        done.add(own)
        yield SampleMembers(own, mine, own != key)


def _webdataset_field(member: Member) -> str:
    split = split_name(member.name)
    assert split is not None, "a member of a sample"
    return split[1]


def _again(place: Path | str, member: Member, key: str) -> UserError:
    return UserError(
        f"{place}: byte {member.offset}: key {key!r} appears again after other samples; write the "
        "members of a sample one after another (`tar --sort=name` does)"
    )
