"""What an earlier index says of shards that have not changed since: they are not read again.

``index/stamps.json`` has, for each shard, what shows cheaply that it is still the one that was
read: of a local one its size, time of change in nanoseconds and inode; of a remote one its size and
the version that the server reports (ETag and the like), without which it is read again. It also has
the limits of media that the index was made with, because they decide what is a problem, the rule of
the keys, and what each shard brings to the account of the pass.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmscale.config import MediaConfig
from mmscale.data.account import Account
from mmscale.data.index.index_files import FOLDER, IndexFiles, Shard
from mmscale.data.index.index_shard import IndexedShard, ShardProblem
from mmscale.data.index.kept_texts import KeptTexts, is_text
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.sample_keys import check_key_dots
from mmscale.data.index.shard_reader import Stamp, read_stamp
from mmscale.data.storage.remote_file import RemoteFault
from mmscale.errors import UserError

STAMPS = "stamps.json"
# Raise it when `index_shard` finds other facts or problems in the same bytes.
_RULES = 1


def write_stamps(
    folder: Path,
    media: MediaConfig,
    key_dots: str,
    stamps: dict[str, Stamp],
    accounts: dict[str, Account],
) -> None:
    """Write the file into a new index ``folder``."""
    notes = {name: accounts[name].as_json() for name, of in stamps.items() if of}
    tree = {
        "rules": _facts(media, key_dots),
        "shards": {name: of for name, of in stamps.items() if of},
        "accounts": {name: rows for name, rows in notes.items() if rows},
    }
    (folder / STAMPS).write_text(json.dumps(tree, ensure_ascii=False), "utf-8")


@dataclass(frozen=True)
class KeptChoices:
    """What was chosen for the index in a folder, by which it is made again.

    Attributes:
        is_there: there is one, however damaged the rest of it is.
        key_dots: the rule of its keys; empty: it names none, as those of before there were rules.
        below: it has shards of sub-folders.
    """

    is_there: bool = False
    key_dots: str = ""
    below: bool = False


def kept_choices(root: Path) -> KeptChoices:
    """The choices of the index in ``root``."""
    try:
        tree = json.loads((root / FOLDER / "manifest.json").read_bytes())
        key_dots = tree.get("key_dots", "")
        below = any("/" in shard["name"] for shard in tree["shards"])
        return KeptChoices(True, key_dots and check_key_dots(key_dots), below)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, UserError):
        return KeptChoices()


class EarlierIndex:
    """The index that lies in ``root``, for the shards of ``base``; empty if there is none, or it
    was made by other rules.
    """

    def __init__(self, root: Path, base: Path | str, media: MediaConfig, key_dots: str) -> None:
        self._base = base
        self._moved = False
        self._accounts: dict[str, Account] = {}
        self._stamps: dict[str, Stamp] = {}
        self._manifest: Manifest | None = None
        self._rows: dict[str, tuple[Shard, int]] = {}
        self._kept: dict[str, KeptTexts] = {}  # by field; where texts end is known by a whole pass
        try:
            tree = json.loads((root / FOLDER / STAMPS).read_bytes())
            stored = IndexFiles(root)
            self._moved = stored.base != base
            local = isinstance(stored.base, Path) and isinstance(base, Path)
            same = tree["rules"] == _facts(media, key_dots)
            if same and (local or not self._moved):
                self._accounts = {
                    name: Account.from_json(rows) for name, rows in tree["accounts"].items()
                }
                self._stamps, self._manifest = dict(tree["shards"]), Manifest(stored)
        except (OSError, ValueError, KeyError, TypeError, UserError):
            return
        first = 0
        for shard in stored.shards:
            self._rows[shard.name] = shard, first
            first += shard.samples
        self._problems = _problems(root)

    def has(self, name: str) -> bool:
        """Whether the index has the shard, which has not changed."""
        if name not in self._rows or name not in self._stamps:
            return False
        try:
            # What was moved or mounted elsewhere keeps size and time, not the inode.
            known = 2 if self._moved else None
            return read_stamp(self._base, name)[:known] == self._stamps[name][:known]
        except (OSError, RemoteFault):
            return False  # reading it will say why

    def get(self, name: str) -> IndexedShard:
        """What the index says of a shard that it has."""
        assert self._manifest is not None
        shard, first = self._rows[name]
        rows = np.arange(first, first + shard.samples)
        samples: list[tuple[str, dict[str, Any]]] = [
            (self._manifest.key(row), {}) for row in rows.tolist()
        ]
        keeps = self._manifest.stored.kept_texts
        texts: dict[str, list[bytes]] = {}
        lacks = False
        for field in self._manifest.fields:
            facts = self._manifest.stored_column(field)[rows]
            for place in np.flatnonzero(facts["offset"]).tolist():
                samples[place][1][field] = facts[place].item()
            lacks = lacks or (is_text(field) and field not in keeps and bool(facts["offset"].any()))
            if len(rows) and field in keeps:
                own = [text for text in self._texts(field).read(rows) if text is not None]
                if own:
                    texts[field] = own
        return IndexedShard(
            shard=shard,
            stamp=self._stamp(name),
            samples=samples,
            problems=self._problems.get(name, []),
            texts=None if lacks else texts,
            account=self._accounts.get(name, Account()),
        )

    def _texts(self, field: str) -> KeptTexts:
        assert self._manifest is not None
        if field not in self._kept:
            self._kept[field] = KeptTexts(self._manifest, self._manifest.stored, [field])
        return self._kept[field]

    def _stamp(self, name: str) -> Stamp:
        """Of the shard where it is now."""
        return read_stamp(self._base, name) if self._moved else self._stamps[name]


def _facts(media: MediaConfig, key_dots: str) -> dict[str, Any]:
    limits = {
        name: value for name, value in dataclasses.asdict(media).items() if name.startswith("max_")
    }
    return {"version": _RULES, "limits": limits, "key_dots": key_dots}


def _problems(root: Path) -> dict[str, list[ShardProblem]]:
    out: dict[str, list[ShardProblem]] = {}
    with open(root / FOLDER / "problems.jsonl", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            out.setdefault(row.pop("shard"), []).append(ShardProblem(**row))
    return out
