"""The account of an index pass: what its shards note, and what only all of them show together."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

from mmscale.data.account import Account, Notice
from mmscale.data.index.index_shard import IndexedShard
from mmscale.data.index.local_shards import files_beside, shard_name, shards_below
from mmscale.data.index.shard_notes import APART

SAME_KEYS = Notice(
    "keys that are equal in several shards",
    "their samples are unrelated; `match: key` in a task or score makes them belong together",
)
ABOUT_SAME_KEYS = Notice("keys (estimated) that are equal in several shards", SAME_KEYS.remedy)
MERGED = Notice(
    "files that a dot in their name makes a field that hardly another sample has",
    "--key-dots last makes each a sample; --key-dots first says that they are fields",
)
BESIDE = Notice(
    "files beside the shards that are not used",
    "only what is in the shards is read; `mmscale data pack` puts the columns of a table there",
)
BELOW = Notice(
    "shards in sub-folders that are not taken",
    "--recursive takes them; or index each folder, and name them all in data.sets.NAME.shards",
)

_MOST_KEYS = 100_000  # that are remembered; of more, a sample
_FEW = 0.01  # of the samples: a field of so few may be a name with a dot


class SetNotes:
    """Collects the notices of a pass, shard by shard in their order, in bounded memory.

    ``asked``: the user named the rule of the keys, so that what it does is not noted.
    """

    def __init__(self, asked: bool) -> None:
        self._asked = asked
        self._account = Account()
        self._keys = _KeyCensus()
        self._samples = 0
        self._named: dict[str, tuple[int, str]] = {}  # by field: samples, and the first

    def add(self, indexed: IndexedShard) -> None:
        """Take one shard more."""
        name = indexed.shard.name
        self._account.add(indexed.account)
        self._samples += len(indexed.samples)
        self._keys.add(name, (key for key, _ in indexed.samples))
        for key, fields in indexed.samples:
            for field in fields:
                if "." in field:
                    count, first = self._named.get(field, (0, f"{name}: {key}.{field}"))
                    self._named[field] = count + 1, first

    def finish(self, folder: Path | None, below: bool) -> Account:
        """The account; ``folder`` holds the shards, if it is a local one; ``below``: also those of
        its sub-folders were taken.
        """
        if self._asked:
            self._account.drop(APART)
        else:
            self._note_merged()
        self._keys.note(self._account)
        if folder is not None:
            for path in files_beside(folder, below):
                self._account.note(BESIDE, shard_name(folder, path))
            for path in () if below else shards_below(folder):
                self._account.note(BELOW, shard_name(folder, path))
        return self._account

    def _note_merged(self) -> None:
        few = max(1, int(_FEW * self._samples))
        numbers = {field.partition(".")[0] for field in self._named}
        for field, (count, first) in sorted(self._named.items()):
            if count <= few and not _is_of_list(field.partition(".")[0], numbers):
                self._account.note(MERGED, first, count)


def _is_of_list(number: str, numbers: set[str]) -> bool:
    """Whether the part is one of 0, 1, 2, …, as a sample's several pictures are named."""
    return number.isdecimal() and all(
        str(one) in numbers for one in range(min(int(number[:6]), len(numbers)) + 1)
    )


class _KeyCensus:
    """Counts keys of several shards: exactly, or of many keys those of a sample."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}  # by key the first shard that has it
        self._again: dict[str, str] = {}  # and another one
        self._one_of = 1

    def add(self, shard: str, keys: Iterable[str]) -> None:
        for key in keys:
            if self._one_of > 1 and not self._is_drawn(key):
                continue
            if key not in self._first:
                self._first[key] = shard
                self._bound()
            elif key not in self._again:
                self._again[key] = shard

    def note(self, account: Account) -> None:
        notice = SAME_KEYS if self._one_of == 1 else ABOUT_SAME_KEYS
        for key, shard in self._again.items():
            account.note(notice, f"{key} in {self._first[key]} and {shard}", self._one_of)

    def _bound(self) -> None:
        if len(self._first) <= _MOST_KEYS:
            return
        self._one_of *= 2
        self._first = {key: shard for key, shard in self._first.items() if self._is_drawn(key)}
        self._again = {key: shard for key, shard in self._again.items() if key in self._first}

    def _is_drawn(self, key: str) -> bool:
        return zlib.crc32(key.encode("utf-8", "replace")) % self._one_of == 0
