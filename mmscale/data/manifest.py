"""The index of a folder of shards, memory-mapped: per sample its key, its shard and where each field lies.

Layout of ``DIR/index/``, beside the shards of ``DIR``:

- ``manifest.json``: version, digest, samples, shards (name, bytes, sha256, samples), fields, problems;
- ``keys.npy`` uint8, the UTF-8 keys one after another, and ``key_ends.npy`` uint64 [N], where each ends;
- ``shard.npy`` uint32 [N], position of the sample's shard in ``shards``; samples stand in shard order;
- ``field.<name>.npy``, one per field, structured [N] of `FACTS`;
- ``problems.jsonl``: members that cannot be used; their samples are not among the N.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.data.probe import ENDINGS, Kind, kind_of
from mmscale.data.shard_list import expand, group_by_folder
from mmscale.errors import UserError

VERSION = 1
FOLDER = "index"
FIELD_NAME = re.compile(r"[a-z0-9_.-]{1,64}")

# ``offset`` and ``size`` of the payload in the shard, bytes; ``offset`` 0: the sample lacks the field.
# ``crc``: zlib.crc32. Image: a = width, b = height. Audio: a = samples per channel, b = sample rate (Hz).
# Text, json, cls: a = characters.
FACTS = [("offset", "<u8"), ("size", "<u8"), ("crc", "<u4"), ("a", "<u4"), ("b", "<u4")]

_MAX_MANIFEST_BYTES = 1 << 28
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One shard as it was indexed. ``sha256`` is of the whole file, in hexadecimal."""

    name: str
    bytes: int
    sha256: str
    samples: int


def identity(shards: list[Shard]) -> str:
    """The digest of a data set: SHA-256 over version, shards (sorted by name) and sample counts."""
    listed = sorted([shard.name, shard.bytes, shard.sha256, shard.samples] for shard in shards)
    content = {"version": VERSION, "shards": listed, "samples": sum(shard.samples for shard in shards)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Located:
    """One field reference resolved over a manifest.

    Attributes:
        facts: structured [N] of `FACTS`; the memory-mapped column itself where one column has it all.
        present: bool [N], whether the sample has the field.
    """

    def __init__(self, manifest: Manifest, reference: str, facts: NDArray[Any]) -> None:
        self._manifest, self._reference = manifest, reference
        self.facts = facts

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        return np.asarray(self.facts["offset"] > 0)

    def __reduce__(self) -> tuple[Any, ...]:
        # Located again in the worker: pickling a memory-mapped column would copy it.
        return Manifest.locate, (self._manifest, self._reference)


class Manifest:
    """The samples 0..N-1 of one folder of shards, or of some of its shards. Picklable at no cost.

    Attributes:
        digest: identity of these shards, 64 hexadecimal digits.
        root: the folder that holds the shards.
        shards: their names, sorted.
    """

    def __init__(
        self, root: Path, shards: list[Shard], stored: _Stored, rows: range | NDArray[np.int64]
    ) -> None:
        """Used by `open` and `restrict` only."""
        self.root = root
        self.entries = shards
        self.shards = [shard.name for shard in shards]
        self.digest = identity(shards)
        self._stored = stored
        self._rows = rows

    @classmethod
    def open(cls, directory: Path | str) -> Manifest:
        """Open the index of a folder of shards.

        Raises `UserError` naming the remedy when there is no index, it is damaged or holds no sample, when a
        shard is missing, has another size than when it was indexed, or was added since.
        """
        manifest = cls.load(directory)
        manifest.check_shards(added=True)
        return manifest

    @classmethod
    def load(cls, directory: Path | str) -> Manifest:
        """`open` without a look at the shards themselves."""
        root = Path(directory)
        stored = _Stored(root)
        return cls(root, stored.shards, stored, range(stored.samples))

    def check_shards(self, added: bool = False) -> None:
        """Compare the shards' sizes with the index (and, with ``added``, look for shards it lacks).

        Raises `UserError` naming the shard.
        """
        with os.scandir(self.root) as listing:
            sizes = {entry.name: entry.stat().st_size for entry in listing if _is_shard(entry)}
        for shard in self.entries:
            if shard.name not in sizes:
                raise UserError(f"{self.root / shard.name}: missing; restore it or {_reindex(self.root)}")
            if sizes[shard.name] != shard.bytes:
                raise UserError(
                    f"{self.root / shard.name}: {sizes[shard.name]} bytes, but {shard.bytes} when it was "
                    f"indexed; restore it or {_reindex(self.root)}"
                )
        new = sorted(sizes.keys() - set(self.shards)) if added else []
        if new:
            raise UserError(f"{self.root / new[0]}: not in the index; remove it or {_reindex(self.root)}")

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, i: int) -> str:
        """Key of sample ``i``."""
        row = int(self._rows[i])
        ends = self._stored.key_ends
        start = int(ends[row - 1]) if row else 0
        return self._stored.keys[start : int(ends[row])].tobytes().decode("utf-8", "replace")

    @property
    def fields(self) -> list[str]:
        """Every field that some sample of the folder has, sorted."""
        return list(self._stored.fields)

    def column(self, field: str) -> NDArray[Any]:
        """Facts of ``field`` (exact name, such as ``png``): structured [N] of `FACTS`."""
        return self._take(self._stored.column(field))

    @cached_property
    def shard_of(self) -> NDArray[np.uint32]:
        """uint32 [N]: position of each sample's shard in ``shards``."""
        if len(self.entries) == len(self._stored.shards):
            return self._stored.shard
        return np.repeat(
            np.arange(len(self.entries), dtype=np.uint32), [shard.samples for shard in self.entries]
        )

    def shard_path(self, i: int) -> Path:
        """Path of shard ``i``, a position in ``shards``."""
        return self.root / self.shards[i]

    def locate(self, reference: str) -> Located:
        """Resolve a field reference of a config: image, audio, text, cls or json.<path>.

        An image (audio) is the first that a sample has of the plain endings in the order of
        `probe.ENDINGS`, then of longer ones such as ``0.png``, sorted.

        Raises `UserError` listing the fields there are if no sample has it.
        """
        facts: NDArray[Any] | None = None
        for field in self._candidates(reference):
            column = self.column(field)
            if facts is None:
                facts = column
            elif (lacking := facts["offset"] == 0).any():
                facts = np.where(lacking, column, facts)
        if facts is None or not facts["offset"].any():
            raise UserError(
                f"{self.root}: no sample has field {reference!r}; fields there are: {', '.join(self.fields)}"
            )
        return Located(self, reference, facts)

    def restrict(self, shard_names: list[str]) -> Manifest:
        """The samples of the named shards only, in their order here, with a digest of their own.

        Raises `UserError` naming a shard the index does not know, or if none of them has a sample.
        """
        wanted = set(shard_names)
        unknown = sorted(wanted - set(self.shards))
        if unknown:
            raise UserError(
                f"{self.root / unknown[0]}: not in the index; check the name or {_reindex(self.root)}"
            )
        ends = np.cumsum([shard.samples for shard in self.entries])
        chosen = [number for number, name in enumerate(self.shards) if name in wanted]
        entries = [self.entries[number] for number in chosen]
        if not any(entry.samples for entry in entries):
            raise UserError(
                f"{self.root}: no usable sample in {', '.join(shard_names[:3])}; name other shards"
            )
        first, last = chosen[0], chosen[-1]
        if last - first + 1 == len(chosen) and isinstance(self._rows, range):
            rows: range | NDArray[np.int64] = self._rows[
                int(ends[first] - entries[0].samples) : int(ends[last])
            ]
        else:
            parts = [np.arange(ends[n] - self.entries[n].samples, ends[n]) for n in chosen]
            rows = np.asarray(self._rows)[np.concatenate(parts)].astype(np.int64)
        return Manifest(self.root, entries, self._stored, rows)

    @property
    def problem_count(self) -> int:
        """Members of the whole folder that could not be used."""
        return self._stored.problems

    def problems(self) -> Iterator[str]:
        """One line for each member of the whole folder that could not be used."""
        return read_problems(self.root)

    def _candidates(self, reference: str) -> list[str]:
        kind = _reference_kind(reference)
        if kind is None:
            raise UserError(f"unknown field {reference!r}; use image, audio, text, cls or json.<path>")
        plain = [field for field in ENDINGS[kind] if field in self.fields]
        if kind not in ("image", "audio"):
            return plain
        return plain + [field for field in self.fields if field not in plain and kind_of(field) == kind]

    def _take(self, column: NDArray[Any]) -> NDArray[Any]:
        if not isinstance(self._rows, range):
            return column[self._rows]
        whole = len(self._rows) == len(column)
        return column if whole else column[self._rows.start : self._rows.stop]

    def __reduce__(self) -> tuple[Any, ...]:
        whole = len(self.entries) == len(self._stored.shards)
        return _reopen, (self.root, None if whole else self.shards, self.digest)


def open_manifests(shards: list[str]) -> list[Manifest]:
    """Open shard folders and files, named one by one or by brace patterns (``DIR/part-{0000..0012}.tar``).

    One manifest per folder, in the order in which folders are first named; of files, restricted to those.

    Raises `UserError` for what `Manifest.open` does, for a name that does not exist or is no folder and no
    ``.tar``, and for a shard that is named twice.
    """
    manifests = []
    for folder, names in group_by_folder(expand(shards)):
        if names is None:
            manifests.append(Manifest.open(folder))
        else:
            manifest = Manifest.load(folder).restrict(names)
            manifest.check_shards()
            manifests.append(manifest)
    return manifests


def read_problems(root: Path) -> Iterator[str]:
    """One line for each member that could not be used when ``root`` was indexed."""
    with open(root / FOLDER / "problems.jsonl", encoding="utf-8") as file:
        for line in file:
            one = json.loads(line)
            where = f"{root / one['shard']}: byte {one['offset']}"
            yield f"{where}: sample {one['key']!r} left out: {one['field']}: {one['reason']}"


class _Stored:
    """The files of one index, checked and memory-mapped; shared by all views."""

    def __init__(self, root: Path) -> None:
        self._root = root
        tree = self._read_json(root / FOLDER / "manifest.json")
        try:
            self.samples, self.problems = tree["samples"], tree["problems"]
            self.shards = [Shard(**shard) for shard in tree["shards"]]
            self.fields: list[str] = sorted(tree["fields"])
            sound = self._sound(tree["digest"])
        except (KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            raise self._damaged("manifest.json")
        if not self.samples:
            found = f"{self.problems} broken members are listed in {root / FOLDER / 'problems.jsonl'}"
            raise UserError(f"{root}: no usable sample; {found}, repair them and {_reindex(root)}")
        self.key_ends = self._map("key_ends", "<u8", self.samples)
        self.keys = self._map("keys", "u1", int(self.key_ends[-1]))
        self.shard = self._map("shard", "<u4", self.samples)
        self._columns: dict[str, NDArray[Any]] = {}

    def column(self, field: str) -> NDArray[Any]:
        if field not in self.fields:
            raise UserError(f"{self._root}: no field {field!r}; fields there are: {', '.join(self.fields)}")
        if field not in self._columns:
            self._columns[field] = self._map(f"field.{field}", FACTS, self.samples)
        return self._columns[field]

    def _sound(self, digest: str) -> bool:
        names = [shard.name for shard in self.shards]
        return (
            type(self.samples) is int
            and type(self.problems) is int
            and bool(names)
            and names == sorted(set(names))
            and all(_is_sound(shard) for shard in self.shards)
            and self.samples == sum(shard.samples for shard in self.shards)
            and all(FIELD_NAME.fullmatch(field) for field in self.fields)
            and digest == identity(self.shards)
        )

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            if path.stat().st_size > _MAX_MANIFEST_BYTES:
                raise self._damaged(path.name)
            tree = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self._root}: no index; run `mmscale data index {self._root}`") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check its rights") from None
        except (ValueError, RecursionError):
            raise self._damaged(path.name) from None
        if not isinstance(tree, dict):
            raise self._damaged(path.name)
        if tree.get("version") != VERSION:
            found = tree.get("version")
            raise UserError(
                f"{path}: index version {found!r}, this release reads {VERSION}; {_reindex(self._root)}"
            )
        return tree

    def _map(self, name: str, dtype: Any, length: int) -> NDArray[Any]:
        path = self._root / FOLDER / f"{name}.npy"
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise self._damaged(path.name) from None
        if array.dtype != np.dtype(dtype) or array.shape != (length,):
            raise self._damaged(path.name)
        return array

    def _damaged(self, name: str) -> UserError:
        return UserError(f"{self._root / FOLDER / name}: the index is damaged; {_reindex(self._root)}")


def _reopen(root: Path, shards: list[str] | None, digest: str) -> Manifest:
    manifest = Manifest.load(root)
    manifest = manifest if shards is None else manifest.restrict(shards)
    if manifest.digest != digest:
        raise UserError(f"{root}: the index was replaced during the run; start the run again")
    return manifest


def _reference_kind(reference: str) -> Kind | None:
    if reference.startswith("json.") and len(reference) > len("json."):
        return "json"
    plain: tuple[Kind, ...] = ("image", "audio", "text", "cls")
    return next((kind for kind in plain if kind == reference), None)


def _is_sound(shard: Shard) -> bool:
    # A name with a folder in it would lead out of the data set.
    return (
        shard.name.endswith(".tar")
        and "/" not in shard.name
        and type(shard.bytes) is int
        and type(shard.samples) is int
        and shard.samples >= 0
        and _HEX.fullmatch(shard.sha256) is not None
    )


def _is_shard(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(".tar") and not entry.name.startswith(".") and entry.is_file()


def _reindex(root: Path) -> str:
    return f"run `mmscale data index {root}`"
