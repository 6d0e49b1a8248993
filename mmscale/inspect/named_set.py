"""The data sets of a report: opened, named, counted from their index, and the samples to be looked
at drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmscale.data.account import Account
from mmscale.data.index.dataset import Dataset
from mmscale.data.index.probe import kind_of
from mmscale.errors import UserError
from mmscale.prf import Permutation, derive_key

# Rows of an index column that are summed at once: 2 M rows of 28 bytes.
_ROWS = 1 << 21


@dataclass(frozen=True, eq=False)
class NamedSet:
    """One data set of the report.

    Attributes:
        name: what the page calls it.
        source: the folder or pattern it was opened from.
        dataset: its samples.
        looked_at: int64, the samples that are decoded, ascending.
    """

    name: str
    source: str
    dataset: Dataset
    looked_at: NDArray[np.int64]

    @property
    def is_subset(self) -> bool:
        """Whether only some of its samples are looked at."""
        return len(self.looked_at) < len(self.dataset)

    @property
    def problem_count(self) -> int:
        """Members its index left out."""
        return sum(manifest.problem_count for manifest in self.dataset.manifests)

    def account(self) -> Account:
        """What its indexes noted as left out, or read otherwise than it may be meant."""
        account = Account()
        for manifest in self.dataset.manifests:
            account.add(manifest.account)
        return account

    def problems(self, most: int) -> Iterator[str]:
        """One line for each of the first ``most`` members its index left out."""
        return islice(chain.from_iterable(m.problems() for m in self.dataset.manifests), most)


@dataclass(kw_only=True)
class Amount:
    """How much a set holds, all of it, as its index knows without decoding.

    ``fields`` counts the samples that have a field, by its exact name. ``audio_s`` is in seconds.
    """

    samples: int
    shards: int
    shard_bytes: int
    pictures: int = 0
    pixels: int = 0
    clips: int = 0
    audio_s: float = 0.0
    texts: int = 0
    characters: int = 0
    fields: dict[str, int] = field(default_factory=dict)


def open_sets(
    sources: list[str], names: list[str], sample: int | None, seed: int
) -> list[NamedSet]:
    """Open every source under its name; of each, draw ``sample`` samples to look at, or take all
    (None).

    Without ``names`` a set is called as its folder is, with as much of the path as
    distinguishes the folders.

    Raises `UserError` when a source has no index, or names and sources do not pair up.
    """
    names = names or _names_of(sources)
    if len(names) != len(sources):
        raise UserError(
            f"--name: {len(names)} names for {len(sources)} folders; name all of them, or none"
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"--name {repeated[0]}: given twice; use a different name for each folder")
    if sample is not None and sample < 1:
        raise UserError(
            f"--sample {sample}: look at 1 sample or more, or leave it out to look at all"
        )
    sets = []
    for name, source in zip(names, sources, strict=True):
        dataset = Dataset.open([source])
        sets.append(NamedSet(name, source, dataset, _draw(dataset, sample, seed)))
    return sets


def count(dataset: Dataset) -> Amount:
    """Sum up the index of ``dataset``."""
    entries = [entry for manifest in dataset.manifests for entry in manifest.entries]
    amount = Amount(
        samples=len(dataset), shards=len(entries), shard_bytes=sum(entry.bytes for entry in entries)
    )
    for manifest in dataset.manifests:
        for name in manifest.fields:
            column = manifest.column(name)
            for start in range(0, len(column), _ROWS):
                _add(amount, name, column[start : start + _ROWS])
    return amount


def _add(amount: Amount, name: str, facts: NDArray[np.void]) -> None:
    facts = facts[facts["offset"] > 0]
    amount.fields[name] = amount.fields.get(name, 0) + len(facts)
    kind = kind_of(name)
    if kind == "image":
        amount.pictures += len(facts)
        amount.pixels += int((facts["a"].astype(np.uint64) * facts["b"]).sum())
    elif kind == "audio":
        amount.clips += len(facts)
        amount.audio_s += float((facts["a"] / facts["b"]).sum())
    elif kind == "text":
        amount.texts += len(facts)
        amount.characters += int(facts["a"].sum(dtype=np.uint64))


def _draw(dataset: Dataset, sample: int | None, seed: int) -> NDArray[np.int64]:
    if sample is None or sample >= len(dataset):
        return np.arange(len(dataset))
    key = derive_key("inspect", seed, *dataset.digests)
    return np.sort(Permutation(key, len(dataset))(np.arange(sample)))


def _names_of(sources: list[str]) -> list[str]:
    parts = [Path(source).absolute().parts for source in sources]
    deepest = max(map(len, parts), default=0)
    for depth in range(1, deepest + 1):
        names = ["/".join(folders[-depth:]) for folders in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{sources[-1]}: named twice; name each folder only once")
