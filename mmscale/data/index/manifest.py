"""The samples of a folder of shards, by number: key, shard, and where each field lies.

Everything is looked up in the memory-mapped index (`index_files`) when it is asked for, so that
opening takes the same time for a thousand samples and for a hundred million.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.config import CacheConfig
from mmscale.data.account import Account
from mmscale.data.index.field_reference import (
    fields_meant,
    json_place,
    no_such_field,
    split_reference,
)
from mmscale.data.index.index_files import (
    FACTS,
    FOLDER,
    IndexFiles,
    Shard,
    identity,
    is_shard_name,
    reindex_remedy,
)
from mmscale.data.index.probe import kind_of
from mmscale.data.index.remote_index import fetch_index
from mmscale.data.storage.remote_file import check_remote
from mmscale.data.storage.shard_patterns import expand, group_by_folder
from mmscale.errors import UserError


@dataclass(frozen=True)
class ShardPlace:
    """Where the bytes of a shard are and what they must be. ``base`` is a folder, or the URL of
    one.
    """

    base: Path | str
    shard: Shard


class FieldLocator:
    """One field reference resolved over a manifest: the first of ``fields`` that a sample has."""

    def __init__(self, manifest: Manifest, fields: list[str]) -> None:
        self._manifest = manifest
        self._columns = [manifest.stored_column(field) for field in fields]

    def facts(self, samples: NDArray[np.int64]) -> NDArray[Any]:
        """Structured [n] of `index_files.FACTS` of the numbered samples; offset 0 where one lacks
        the field.
        """
        rows = self._manifest.rows(samples)
        facts = self._columns[0][rows]
        for column in self._columns[1:]:
            lacking = np.flatnonzero(facts["offset"] == 0)
            if not len(lacking):
                break
            facts[lacking] = column[rows[lacking]]
        return facts

    def bytes_of(self, sample: int) -> tuple[int, int, int]:
        """(offset, size, CRC-32) of one sample's field, as `facts`."""
        row = sample if self._manifest.is_whole else int(self._manifest.rows(np.array([sample]))[0])
        facts = self._columns[0][row]
        for column in self._columns[1:]:
            if facts["offset"]:
                break
            facts = column[row]
        offset, size, crc, *_ = facts.item()
        return offset, size, crc


class Manifest:
    """The samples 0..N-1 of one folder of shards, or of some of its shards. Picklable at no cost.

    Attributes:
        digest: identity of these shards, 64 hexadecimal digits.
        root: the folder that holds the index.
        base: where the shards are: ``root``, another local folder, or a URL.
        entries: the shards, sorted by name; ``shards`` are their names.
    """

    def __init__(self, stored: IndexFiles, numbers: list[int] | None = None) -> None:
        """Of all shards of ``stored``, or of those with the given ascending ``numbers``."""
        self._stored, self._numbers = stored, numbers
        self.root, self.base = stored.root, stored.base
        stored_shards = stored.shards
        self.entries = (
            stored_shards if numbers is None else [stored_shards[number] for number in numbers]
        )
        self.shards = [shard.name for shard in self.entries]
        self.digest = stored.digest if numbers is None else identity(self.entries)
        # Sample i of shard s here is row i + shift[s] of the stored columns.
        self._ends = np.cumsum([shard.samples for shard in self.entries])
        stored_ends = np.cumsum([shard.samples for shard in stored_shards])
        self._shift = np.zeros(len(self.entries), np.int64)
        if numbers is not None:
            self._shift = stored_ends[numbers] - self._ends

    @classmethod
    def open(cls, directory: Path | str) -> Manifest:
        """Open the index of a folder of shards.

        Raises `UserError` naming the remedy when there is no index, it is damaged or holds no
        sample, when a shard is missing, has another size than when it was indexed, or was added
        since.
        """
        manifest = cls.load(directory)
        manifest.check_shards(added=True)
        return manifest

    @classmethod
    def load(cls, directory: Path | str) -> Manifest:
        """`open` without a look at the shards themselves."""
        return cls(IndexFiles(Path(directory)))

    def check_shards(self, added: bool = False) -> None:
        """Compare the shards' sizes with the index (and, with ``added``, look for shards it lacks).

        Remote shards are not looked at: what is fetched of one is checked then.

        Raises `UserError` naming the shard.
        """
        if not isinstance(self.base, Path):
            return
        try:
            sizes = _sizes(self.base, self.has_folders)
        except OSError as error:
            raise UserError(
                f"{self.base}: the folder that holds the shards of {self.root} cannot be read "
                f"({error.strerror}); mount it there, or, where they moved, "
                f"`mmscale data index FOLDER --out {self.root}` (what has not changed is not read)"
            ) from None
        remedy = self.remedy
        for shard in self.entries:
            if shard.name not in sizes:
                raise UserError(f"{self.base / shard.name}: missing; restore it or {remedy}")
            if sizes[shard.name] != shard.bytes:
                raise UserError(
                    f"{self.base / shard.name}: {sizes[shard.name]} bytes, but {shard.bytes} when "
                    f"it was indexed; restore it or {remedy}"
                )
        new = sorted(sizes.keys() - set(self.shards) - self.skipped.keys()) if added else []
        if new:
            raise UserError(f"{self.base / new[0]}: not in the index; remove it or {remedy}")

    @property
    def has_folders(self) -> bool:
        """Whether shards lie in sub-folders, all of which the index is to have then."""
        return any("/" in shard.name for shard in self._stored.shards)

    @property
    def remedy(self) -> str:
        """What to do about an index that does not fit its shards."""
        return reindex_remedy(self.root, self.base)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def is_whole(self) -> bool:
        """Whether sample numbers are those of the stored columns."""
        return self._numbers is None

    def rows(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [n]: where the numbered samples stand in the stored columns."""
        if self._numbers is None:
            return samples
        return samples + self._shift[np.searchsorted(self._ends, samples, side="right")]

    def key(self, i: int) -> str:
        """Key of sample ``i``."""
        row = i if self._numbers is None else int(self.rows(np.array([i]))[0])
        ends = self._stored.key_ends
        start = int(ends[row - 1]) if row else 0
        return self._stored.keys[start : int(ends[row])].tobytes().decode("utf-8", "replace")

    @property
    def fields(self) -> list[str]:
        """Every field that some sample of the folder has, sorted."""
        return list(self._stored.fields)

    def column(self, field: str) -> NDArray[Any]:
        """Facts of ``field`` (exact name, such as ``png``) over all samples: structured [N] of
        `FACTS`.
        """
        column = self._stored.column(field)
        return column if self._numbers is None else column[self.rows(np.arange(len(self)))]

    def stored_column(self, field: str) -> NDArray[Any]:
        """The memory-mapped column behind `column`, to be indexed by `rows`."""
        return self._stored.column(field)

    def shard_of(self, i: int) -> int:
        """Position of sample ``i``'s shard in ``shards``."""
        return bisect_right(self._ends, i)

    def samples_of(self, shard: int) -> range:
        """The samples of shard ``shard``, a position in ``shards``."""
        end = int(self._ends[shard])
        return range(end - self.entries[shard].samples, end)

    def payloads(
        self, samples: NDArray[np.int64], references: Collection[str] | None
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Each of the fields (None: all that can be read) of the numbered samples that have it.

        Returns:
            int64 [n]: the position in ``shards`` of the shard that holds it; structured [n]: its
            `FACTS`.
        """
        shards = np.searchsorted(self._ends, samples, side="right")
        owners, found = [shards[:0]], [np.zeros(0, FACTS)]
        for fields in self._wanted(references):
            facts = FieldLocator(self, list(fields)).facts(samples)
            there = facts["offset"] > 0
            owners.append(shards[there])
            found.append(facts[there])
        return np.concatenate(owners), np.concatenate(found)

    def payloads_between(
        self, shard: int, start: int, end: int, references: Collection[str] | None
    ) -> NDArray[Any]:
        """`FACTS` [n] of the fields (as `payloads`) that lie in bytes [start, end) of a shard, a
        position in ``shards``.
        """
        samples = self.samples_of(shard)
        first = int(self.rows(np.array([samples.start]))[0]) if samples else 0
        found = [np.zeros(0, FACTS)]
        for field in {field: None for fields in self._wanted(references) for field in fields}:
            column = self._stored.column(field)
            low = _seek(column["offset"], first, first + len(samples), start)
            facts = column[low : _seek(column["offset"], low, first + len(samples), end)]
            begins = (facts["offset"] >= max(start, 1)) & (facts["offset"] <= end)
            found.append(facts[begins & (facts["size"] <= end - facts["offset"])])
        return np.concatenate(found)

    def place(self, shard: int) -> ShardPlace:
        """Where shard ``shard``, a position in ``shards``, is."""
        return ShardPlace(self.base, self.entries[shard])

    def has(self, reference: str) -> bool:
        """Whether some sample of the folder has the field that a config calls ``reference``."""
        return bool(self.fields_of(reference))

    def locate(self, reference: str) -> FieldLocator:
        """Resolve a field reference of a config (`fields_meant`).

        Raises `UserError` listing the fields there are if no sample of the folder has it.
        """
        fields = self.fields_of(reference)
        if not fields:
            raise UserError(f"{self.root}: {no_such_field(reference, self.fields)}")
        return FieldLocator(self, fields)

    def restrict(self, shard_names: list[str]) -> Manifest:
        """The samples of the named shards only, in their order here, with a digest of their own.

        Raises `UserError` naming a shard the index does not know, or if none of them has a sample.
        """
        wanted = set(shard_names)
        unknown = sorted(wanted - set(self.shards))
        if unknown:
            raise UserError(
                f"{self.root / unknown[0]}: not in the index; check the name or {self.remedy}"
            )
        own = self._numbers if self._numbers is not None else range(len(self.shards))
        numbers = [number for number, name in zip(own, self.shards, strict=True) if name in wanted]
        if not any(self._stored.shards[number].samples for number in numbers):
            raise UserError(
                f"{self.root}: no usable sample in {', '.join(shard_names[:3])}; name other shards"
            )
        return Manifest(self._stored, numbers)

    @property
    def problem_count(self) -> int:
        """Members of the whole folder that could not be used."""
        return self._stored.problems

    def problems(self) -> Iterator[str]:
        """One line for each member of the whole folder that could not be used."""
        return read_problems(self.root, self.base)

    def _wanted(self, references: Collection[str] | None) -> list[tuple[str, ...]]:
        """The fields of each reference that some sample has; None: every one that can be read."""
        lists = [[field] for field in self.fields if kind_of(field) is not None]
        if references is not None:
            lists = [self.fields_of(reference) for reference in references]
        return list(dict.fromkeys(map(tuple, filter(None, lists))))  # json.a and json.b are one

    @property
    def skipped(self) -> dict[str, str]:
        """Bad shards of the folder that were left out of the index, each with the reason."""
        return self._stored.skipped

    @property
    def key_dots(self) -> str:
        """Which dot of a member's name ends the key (`sample_keys`)."""
        return self._stored.key_dots

    @property
    def account(self) -> Account:
        """What of the whole folder was left out, or reads otherwise than it may be meant."""
        return self._stored.account

    @property
    def stored(self) -> IndexFiles:
        """The index behind this view."""
        return self._stored

    def fields_of(self, reference: str) -> list[str]:
        """The fields that a reference of a config means, the first of them that a sample has; empty
        if there are none.
        """
        return fields_meant(reference, self._stored.fields)

    def json_path(self, reference: str) -> str:
        """The path that a reference ``json.<path>`` means, in the JSON of `fields_of` it."""
        return json_place(split_reference(reference)[1], self._stored.fields)[1]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.root, self._numbers, self.digest)


def open_manifests(shards: list[str], cache: CacheConfig) -> list[Manifest]:
    """Open shard folders and files, local or remote: names, URLs, brace patterns, lists
    (``@FILE``).

    Of a remote folder, the index that lies beside its shards is copied to the ``cache``.

    One manifest per folder, in the order in which folders are first named; of files, restricted to
    those.

    Raises `UserError` for what `Manifest.open` does, for a name that does not exist or is no folder
    and no ``.tar``, for a URL that is not taken, and for a shard that is named twice.
    """
    manifests = []
    for folder, names in group_by_folder(expand(shards)):
        manifest = Manifest.load(folder if isinstance(folder, Path) else fetch_index(folder, cache))
        if names is not None:
            manifest = manifest.restrict(names)
        if isinstance(manifest.base, Path):
            manifest.check_shards(added=names is None)
        else:
            check_remote(manifest.base)
        manifests.append(manifest)
    return manifests


def read_problems(root: Path, base: Path | str) -> Iterator[str]:
    """One line for each member that could not be used when ``base`` was indexed into ``root``."""
    with open(root / FOLDER / "problems.jsonl", encoding="utf-8") as file:
        for line in file:
            problem = json.loads(line)
            where = f"{base}/{problem['shard']}: byte {problem['offset']}"
            reason = f"{problem['field']}: {problem['reason']}"
            yield f"{where}: sample {problem['key']!r} left out: {reason}"


def _seek(offsets: NDArray[np.uint64], low: int, high: int, wanted: int) -> int:
    """The first of the rows low..high-1 whose payload begins at ``wanted`` or later.

    In a shard the payloads of a field ascend, but for samples that lack it (0).
    """
    while low < high:
        middle = at = (low + high) // 2
        while at < high and not offsets[at]:
            at += 1
        if at == high or offsets[at] >= wanted:
            high = middle
        else:
            low = at + 1
    return low


def _reopen(root: Path, numbers: list[int] | None, digest: str) -> Manifest:
    manifest = Manifest(IndexFiles(root), numbers)
    if manifest.digest != digest:
        raise UserError(f"{root}: the index was replaced during the run; start the run again")
    return manifest


def _sizes(folder: Path, below: bool) -> dict[str, int]:
    """Bytes of the shards of a folder, ``below``: and of its sub-folders, by path from there."""
    sizes: dict[str, int] = {}
    with os.scandir(folder) as listing:
        for entry in listing:
            if is_shard_name(entry.name) and entry.is_file():
                sizes[entry.name] = entry.stat().st_size
            elif below and not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                inner = _sizes(Path(entry.path), True) if entry.name != FOLDER else {}
                sizes |= {f"{entry.name}/{name}": size for name, size in inner.items()}
    return sizes
