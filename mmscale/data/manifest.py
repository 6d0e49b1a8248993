"""The index of a folder of shards: memory-mapped arrays in ``index/`` beside them.

    manifest.json        version, digest, shards (name, bytes, sha256, samples), fields, problems
    keys.npy             every key's UTF-8 bytes, one after the other; key_ends.npy: uint64 [samples]
    shard.npy            uint32 [samples]
    field.<name>.npy     FACTS [samples], one file per field; offset 0: the sample lacks the field

The digest is the identity of the data set: it covers the name, size and SHA-256 of every shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.data.fields import IMAGE_ENDINGS, kind_of
from mmscale.errors import UserError

VERSION = 1
FACTS = np.dtype([("offset", "<u8"), ("size", "<u8"), ("crc", "<u4"), ("a", "<u4"), ("b", "<u4")])
"""Where a field lies, and what planning needs: image a=width, b=height; audio a=samples per channel, b=rate;
text, json and cls a=characters."""

_FIELD_NAME = re.compile(r"[a-z0-9_.-]{1,64}")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True)
class Shard:
    """One tar of a manifest."""

    name: str
    bytes: int
    sha256: str
    samples: int


@dataclass(frozen=True)
class Located:
    """One field reference over all samples; ``facts`` is FACTS [samples]."""

    facts: NDArray[Any]

    @property
    def present(self) -> NDArray[np.bool_]:
        """bool [samples]: does the sample have the field."""
        return self.facts["offset"] > 0


class Manifest:
    """The samples of some shards of one folder."""

    def __init__(
        self,
        root: Path,
        shards: list[Shard],
        keys: NDArray[np.uint8],
        key_ends: NDArray[np.uint64],
        key_starts: NDArray[np.uint64],
        shard_of: NDArray[np.uint32],
        columns: dict[str, NDArray[Any]],
        problems: int,
    ) -> None:
        self.root, self.problems = root, problems
        self.shards = [shard.name for shard in shards]
        self.shard_of = shard_of
        self.digest = _digest(shards)
        self._facts, self._columns = shards, columns
        self._keys, self._key_starts, self._key_ends = keys, key_starts, key_ends

    @classmethod
    def open(cls, directory: str | Path) -> Manifest:
        """Map the index of ``directory``.

        Raises:
            UserError: there is no index, it is damaged, or a shard is missing or has another size.
        """
        root = Path(directory)
        index = root / "index"
        try:
            head = json.loads((index / "manifest.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{root}: no index; run: mmscale data index {root}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{index}/manifest.json: cannot be read ({error}); run: mmscale data index {root}") from None
        try:
            if head["version"] != VERSION:
                raise ValueError(f"version {head['version']}, this program reads {VERSION}")
            shards = [Shard(**one) for one in head["shards"]]
            names = [name for name in head["fields"] if _FIELD_NAME.fullmatch(name)]
            columns = {name: _map(index / f"field.{name}.npy", FACTS) for name in names}
            ends = _map(index / "key_ends.npy", np.dtype("<u8"))
            starts = np.concatenate([np.zeros(1, "<u8"), ends[:-1]]) if len(ends) else ends
            keys, shard_of = _map(index / "keys.npy", np.dtype("u1")), _map(index / "shard.npy", np.dtype("<u4"))
            lengths = {len(ends), len(shard_of), int(head["samples"]), *(len(column) for column in columns.values())}
            if len(lengths) != 1 or _digest(shards) != head["digest"]:
                raise ValueError("its parts do not belong together")
            problems = int(head["problems"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{index}: damaged index ({error}); run: mmscale data index {root}") from None
        manifest = cls(root, shards, keys, ends, starts, shard_of, columns, problems)
        manifest._check_shards()
        return manifest

    def __len__(self) -> int:
        return len(self.shard_of)

    @property
    def fields(self) -> list[str]:
        """Names of the fields any sample has."""
        return list(self._columns)

    def key(self, sample: int) -> str:
        """The sample's WebDataset key."""
        return self._keys[int(self._key_starts[sample]) : int(self._key_ends[sample])].tobytes().decode("utf-8")

    def column(self, field: str) -> NDArray[Any]:
        """FACTS [samples] of a field by its exact name."""
        return self._columns[field]

    def shard_path(self, number: int) -> Path:
        """File of a shard."""
        return self.root / self.shards[number]

    def locate(self, reference: str) -> Located:
        """Resolve image, audio, text, cls or json.<path> to the first field of that kind each sample has.

        Raises:
            UserError: no sample has such a field.
        """
        kind = reference.partition(".")[0]
        names = sorted((name for name in self._columns if kind_of(name) == kind), key=_preference)
        if not names:
            have = ", ".join(self._columns) or "none"
            raise UserError(f"{self.root}: no sample has the field {reference!r}; fields there are: {have}")
        facts = self._columns[names[0]]
        for name in names[1:]:
            facts = np.where(facts["offset"] > 0, facts, self._columns[name])
        return Located(facts)

    def restrict(self, names: list[str]) -> Manifest:
        """The samples of some shards only, as a data set with an identity of its own.

        Raises:
            UserError: a shard is not in the index.
        """
        for name in names:
            if name not in self.shards:
                raise UserError(f"{self.root / name}: not in the index; run: mmscale data index {self.root}")
        numbers = [self.shards.index(name) for name in names]
        renumber = np.full(len(self.shards), -1, np.int64)
        renumber[numbers] = np.arange(len(numbers))
        rows = np.nonzero(renumber[self.shard_of] >= 0)[0]
        return Manifest(
            self.root,
            [self._facts[number] for number in numbers],
            self._keys,
            self._key_ends[rows],
            self._key_starts[rows],
            renumber[self.shard_of[rows]].astype(np.uint32),
            {name: column[rows] for name, column in self._columns.items()},
            self.problems,
        )

    def shard_facts(self) -> list[Shard]:
        """Name, size and hash of every shard."""
        return list(self._facts)

    def _check_shards(self) -> None:
        for shard in self._facts:
            path = self.root / shard.name
            try:
                size = path.stat().st_size
            except OSError:
                raise UserError(f"{path}: shard is missing; bring it back, or run: mmscale data index {self.root}") from None
            if size != shard.bytes:
                raise UserError(
                    f"{path}: shard has {size} bytes, the index says {shard.bytes}; "
                    f"bring it back, or run: mmscale data index {self.root}"
                )


def open_manifests(shards: list[str]) -> list[Manifest]:
    """Manifests of folders, single tars and brace patterns such as ``train-{0000..0015}.tar``.

    Raises:
        UserError: naming what is missing.
    """
    manifests = []
    for entry in shards:
        paths = [Path(name) for name in expand_braces(entry)]
        folders = [path for path in paths if path.suffix != ".tar"]
        manifests += [Manifest.open(folder) for folder in folders]
        tars: dict[Path, list[str]] = {}
        for path in paths:
            if path.suffix == ".tar":
                tars.setdefault(path.parent, []).append(path.name)
        manifests += [Manifest.open(folder).restrict(names) for folder, names in tars.items()]
    return manifests


def expand_braces(pattern: str) -> list[str]:
    """``a{00..02}b`` and ``a{x,y}b`` as lists; several braces multiply. Numbers keep their leading zeros."""
    found = _BRACES.search(pattern)
    if not found:
        return [pattern]
    if found[3] is not None:
        choices = found[3].split(",")
    else:
        first, last = int(found[1]), int(found[2])
        if not first <= last < first + 10_000_000:
            raise UserError(f"{pattern}: {found[0]} is no ascending range of at most ten million")
        choices = [str(number).zfill(len(found[1])) for number in range(first, last + 1)]
    return [name for choice in choices for name in expand_braces(pattern[: found.start()] + choice + pattern[found.end() :])]


def write_manifest(
    directory: Path,
    shards: list[Shard],
    keys: list[str],
    shard_of: list[int],
    columns: dict[str, NDArray[Any]],
    problems: list[dict[str, Any]],
) -> Manifest:
    """Write the index of ``directory`` into a temporary folder and rename it into place."""
    final, fresh, old = (directory / name for name in ("index", f".index.{os.getpid()}.new", f".index.{os.getpid()}.old"))
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    encoded = [key.encode("utf-8") for key in keys]
    np.save(fresh / "keys.npy", np.frombuffer(b"".join(encoded), dtype="u1"))
    np.save(fresh / "key_ends.npy", np.cumsum([len(key) for key in encoded], dtype="<u8"))
    np.save(fresh / "shard.npy", np.array(shard_of, dtype="<u4"))
    for name, column in columns.items():
        assert _FIELD_NAME.fullmatch(name), name
        np.save(fresh / f"field.{name}.npy", column)
    with open(fresh / "problems.jsonl", "w", encoding="utf-8") as file:
        file.write("".join(json.dumps(problem, ensure_ascii=False) + "\n" for problem in problems))
    head = {
        "version": VERSION,
        "digest": _digest(shards),
        "samples": len(keys),
        "shards": [vars(shard) for shard in shards],
        "fields": list(columns),
        "problems": len(problems),
    }
    (fresh / "manifest.json").write_text(json.dumps(head, indent=1), encoding="utf-8")
    if final.exists():
        os.rename(final, old)
    os.rename(fresh, final)
    shutil.rmtree(old, ignore_errors=True)
    return Manifest.open(directory)


def allowed_field(name: str) -> bool:
    """May a field of this name stand in an index?"""
    return _FIELD_NAME.fullmatch(name) is not None


def _preference(name: str) -> tuple[int, int, str]:
    """Plain endings before double ones, then the order of IMAGE_ENDINGS, then the alphabet."""
    ending = name.rpartition(".")[2]
    rank = IMAGE_ENDINGS.index(ending) if ending in IMAGE_ENDINGS else 0
    return name.count("."), rank, name


def _digest(shards: list[Shard]) -> str:
    facts = [VERSION, sorted([shard.name, shard.bytes, shard.sha256, shard.samples] for shard in shards)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _map(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A one-dimensional array of ``dtype``, mapped, never unpickled."""
    array = np.load(path, mmap_mode="r", allow_pickle=False) if path.stat().st_size > 128 else np.load(path)
    if array.dtype != dtype or array.ndim != 1:
        raise ValueError(f"{path.name} holds {array.dtype}, not {dtype}")
    return array
