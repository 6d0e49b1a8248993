"""The files of one index, checked and memory-mapped.

Layout of ``DIR/index/``:

- ``manifest.json``: version, digest, samples, shards (name, bytes, sha256, samples), fields,
  problems; where the shards do not lie in ``DIR``, ``base``, the URL of the folder that holds them,
  or ``folder``, its path; ``key_dots``, the rule of the keys (`sample_keys`; absent: webdataset's);
  ``account``, what was not simply taken (`mmscale.data.account`);
- ``keys.npy`` uint8, the UTF-8 keys one after another, and ``key_ends.npy`` uint64 [N], where each
  ends; samples stand in the order of the shards;
- ``field.<name>.npy``, one per field, structured [N] of `FACTS`;
- ``texts.<name>.npy`` uint8, of text fields that are few beside the shards (`kept_texts`);
  ``manifest.json`` has their lengths as ``texts``, where there are any, and as ``skipped`` the
  shards that were left out as bad, each with the reason;
- ``stamps.json``, by which the next pass knows what has not changed (`earlier_index`);
- ``problems.jsonl``: members that cannot be used; their samples are not among the N.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.data.account import Account
from mmscale.data.index.sample_keys import FIRST, check_key_dots
from mmscale.errors import UserError

VERSION = 1
FOLDER = "index"
FIELD_NAME = re.compile(r"[a-z0-9_.-]{1,64}")

# ``offset`` and ``size`` of the payload in the shard, bytes; ``offset`` 0: the sample lacks the
# field. ``crc``: zlib.crc32. Image: a = width, b = height. Audio: a = samples per channel, b =
# sample rate (Hz). Text, json, cls: a = characters.
FACTS = [("offset", "<u8"), ("size", "<u8"), ("crc", "<u4"), ("a", "<u4"), ("b", "<u4")]

_MAX_MANIFEST_BYTES = 1 << 28
_HEX = re.compile(r"[0-9a-f]{64}")
_URL = re.compile(r"[a-z0-9]+://[^\s]+")


@dataclass(frozen=True)
class Shard:
    """One shard as it was indexed.

    Attributes:
        name: its path from the folder of the set.
        sha256: of the whole file, in hexadecimal.
        key_dots: the rule of its keys (`sample_keys`), where any is not webdataset's; else empty.
    """

    name: str
    bytes: int
    sha256: str
    samples: int
    key_dots: str = ""

    def facts(self) -> dict[str, Any]:
        """As ``manifest.json`` has it."""
        return {name: value for name, value in asdict(self).items() if value != ""}


def is_shard_name(name: str) -> bool:
    """Whether a file of that name is taken for a shard: ``.tar`` or ``.TAR``, not hidden."""
    return name.lower().endswith(".tar") and not name.startswith(".")


def identity(shards: list[Shard]) -> str:
    """The digest of a data set: SHA-256 over version, shards (sorted by name) and sample counts."""
    # A rule that changes no key changes no digest.
    listed = sorted(list(shard.facts().values()) for shard in shards)
    content = {
        "version": VERSION,
        "shards": listed,
        "samples": sum(shard.samples for shard in shards),
    }
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def reindex_remedy(root: Path, base: Path | str | None = None) -> str:
    """What to do about an index of shards in ``base`` (None: ``root``) that does not fit them."""
    if base in (None, root):
        return f"run `mmscale data index {root}`"
    return f"run `mmscale data index {base} --out {root}`"


class IndexFiles:
    """An index as it lies on disk; every view of it (`manifest.Manifest`) shares one.

    Attributes:
        root: the folder that holds ``index/``.
        base: where the shards are: ``root``, another local folder, or the URL of one.
        key_dots: the rule of the keys; account: what the pass did not simply take.

    Raises `UserError` naming the remedy when there is no index, it is damaged, or it holds no
    sample.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        tree = self._read_json(root / FOLDER / "manifest.json")
        try:
            self.samples, self.problems = tree["samples"], tree["problems"]
            self.shards = [Shard(**shard) for shard in tree["shards"]]
            self.fields: list[str] = sorted(tree["fields"])
            self.base: Path | str = tree.get("base") or Path(root, tree.get("folder", ""))
            self.kept_texts: dict[str, int] = dict(tree.get("texts", {}))
            self.skipped: dict[str, str] = dict(tree.get("skipped", {}))
            self.key_dots: str = tree.get("key_dots", FIRST)
            self.account = Account.from_json(tree.get("account", []))
            sound = self._sound(tree["digest"])
        except (KeyError, TypeError, ValueError, AttributeError):
            sound = False
        if not sound:
            raise self.damaged("manifest.json")
        self.digest: str = tree["digest"]
        if not self.samples:
            listed = (
                f"{self.problems} broken members are listed in {root / FOLDER / 'problems.jsonl'}"
            )
            raise UserError(
                f"{root}: no usable sample; {listed}, repair them and {reindex_remedy(root)}"
            )
        self.key_ends = self._map("key_ends", "<u8", self.samples)
        self.keys = self._map("keys", "u1", int(self.key_ends[-1]))
        self._columns: dict[str, NDArray[Any]] = {}
        self._texts: dict[str, NDArray[Any]] = {}

    def column(self, field: str) -> NDArray[Any]:
        """Facts of one field over all samples: structured [N] of `FACTS`, memory-mapped."""
        if field not in self.fields:
            raise UserError(
                f"{self.root}: no field {field!r}; fields there are: {', '.join(self.fields)}"
            )
        if field not in self._columns:
            self._columns[field] = self._map(f"field.{field}", FACTS, self.samples)
        return self._columns[field]

    def texts(self, field: str) -> NDArray[Any]:
        """The kept texts of one of the `kept_texts`: uint8, one behind the other, memory-mapped."""
        if field not in self._texts:
            self._texts[field] = self._map(f"texts.{field}", "u1", self.kept_texts[field])
        return self._texts[field]

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
            and all(isinstance(reason, str) for reason in self.skipped.values())
            and set(self.kept_texts) <= set(self.fields)
            and all(type(size) is int and size >= 0 for size in self.kept_texts.values())
            and (isinstance(self.base, Path) or _URL.fullmatch(self.base) is not None)
            and _is_rule(self.key_dots)
            and digest == identity(self.shards)
        )

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            if path.stat().st_size > _MAX_MANIFEST_BYTES:
                raise self.damaged(path.name)
            tree = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self.root}: no index; run `mmscale data index {self.root}`"
            ) from None
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}); check its rights"
            ) from None
        except (ValueError, RecursionError):
            raise self.damaged(path.name) from None
        if not isinstance(tree, dict):
            raise self.damaged(path.name)
        if tree.get("version") != VERSION:
            version = tree.get("version")
            raise UserError(
                f"{path}: index version {version!r}, this release reads {VERSION}; "
                f"{reindex_remedy(self.root)}"
            )
        return tree

    def _map(self, name: str, dtype: Any, length: int) -> NDArray[Any]:
        path = self.root / FOLDER / f"{name}.npy"
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise self.damaged(path.name) from None
        if array.dtype != np.dtype(dtype) or array.shape != (length,):
            raise self.damaged(path.name)
        return array.view(np.ndarray)  # a memmap makes a memmap of every element that is looked up

    def damaged(self, name: str) -> UserError:
        """The error that a file of the index is not as the others say."""
        return UserError(
            f"{self.root / FOLDER / name}: the index is damaged; {reindex_remedy(self.root)}"
        )


def _is_sound(shard: Shard) -> bool:
    # A name may lead into a sub-folder, and not out of the data set.
    return (
        shard.name.lower().endswith(".tar")
        and not set(shard.name.split("/")) & {"", ".", ".."}
        and type(shard.bytes) is int
        and 0 <= shard.bytes < 1 << 62
        and type(shard.samples) is int
        and shard.samples >= 0
        and _HEX.fullmatch(shard.sha256) is not None
        and (shard.key_dots == "" or _is_rule(shard.key_dots))
    )


def _is_rule(key_dots: Any) -> bool:
    try:
        return isinstance(key_dots, str) and check_key_dots(key_dots) == key_dots
    except UserError:
        return False
