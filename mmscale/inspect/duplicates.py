"""Which samples are the same, or nearly, within a data set and across two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmscale.inspect.picture import BLANK_CONTRAST, CELLS, LOW

if TYPE_CHECKING:
    import pandas

NEAR_BITS = 4
"""Perceptual hashes of pictures that look alike differ in so many of 64 bits, at the most."""
NEAR_COLOUR = 12.0
"""And their coarse colours by this mean, of 255, at the most: a flag in other colours is another
picture.
"""

# Bands of a hash: with one more band than bits that may differ, one band at least is equal.
_BANDS = NEAR_BITS + 1
# Neighbours that a picture is compared with in a band; more than so many look-alikes are one group
# anyway.
_REACH = 1000


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Samples of set ``part`` that are also in set ``whole``, which was named before it.

    ``samples`` and ``matches`` are rows of the table: ``matches[i]`` is the first of ``whole`` that
    equals ``samples[i]``. ``near``: they are alike, not equal.
    """

    modality: str
    part: str
    whole: str
    near: bool
    samples: NDArray[np.int64]
    matches: NDArray[np.int64]


def add_groups(table: pandas.DataFrame) -> None:
    """Add, for every modality, the columns ``<modality>_same`` and ``<modality>_alike``: Int64
    group numbers.

    A group is two samples or more with equal contents (pictures: equal files; sound: equal
    waveforms; text: equal text); of ``_alike``, with nearly equal contents. A sample without such a
    relative has null. Sound has no ``_alike``.
    """
    table["image_same"] = _groups(table["image_hash"])
    table["image_alike"] = _look_alikes(table)
    table["audio_same"] = _groups(table["audio_hash"])
    table["text_same"] = _groups(table["text_hash"])
    table["text_alike"] = _groups(table["text_bare_hash"])


def pairs(names: list[str]) -> list[tuple[str, str]]:
    """Every two sets, the later one first: training data is named before what it is tested on."""
    return [(later, earlier) for earlier, later in combinations(names, 2)]


def overlaps(table: pandas.DataFrame, names: list[str], modality: str) -> Iterator[Overlap]:
    """The overlaps of every two sets that have one: equal samples, then those that are only
    alike.
    """
    for part, whole in pairs(names):
        equal = _overlap(table, modality, part, whole, near=False)
        if len(equal.samples):
            yield equal
        if f"{modality}_alike" in table:
            near = _overlap(table, modality, part, whole, near=True)
            new = ~np.isin(near.samples, equal.samples)
            if new.any():
                yield Overlap(
                    modality=modality,
                    part=part,
                    whole=whole,
                    near=True,
                    samples=near.samples[new],
                    matches=near.matches[new],
                )


def repeats(table: pandas.DataFrame, column: str, name: str) -> list[NDArray[np.int64]]:
    """Groups (rows of the table) of two samples or more of set ``name`` with one number in
    ``column``.
    """
    inside = table[(table["set"] == name) & table[column].notna()]
    groups = [rows.index.to_numpy(dtype=np.int64) for _, rows in inside.groupby(column)]
    return [rows for rows in groups if len(rows) > 1]


def _overlap(table: pandas.DataFrame, modality: str, part: str, whole: str, near: bool) -> Overlap:
    column = f"{modality}_{'alike' if near else 'same'}"
    grouped = table[table[column].notna()]
    theirs = grouped[grouped["set"] == whole]
    first = dict(zip(theirs[column][::-1], theirs.index[::-1], strict=True))
    mine = grouped[(grouped["set"] == part) & grouped[column].isin(list(first))]
    matches = np.array([first[group] for group in mine[column]], dtype=np.int64)
    return Overlap(
        modality=modality,
        part=part,
        whole=whole,
        near=near,
        samples=mine.index.to_numpy(dtype=np.int64),
        matches=matches,
    )


def _groups(values: pandas.Series) -> pandas.Series:
    """Int64 group numbers of equal values, counted in order of first appearance; null where there
    is one alone.
    """
    import pandas as pd

    repeated = values.notna() & values.duplicated(keep=False)
    numbers = pd.Series(pd.NA, index=values.index, dtype="Int64")
    numbers[repeated] = pd.factorize(values[repeated])[0]
    return numbers


def _look_alikes(table: pandas.DataFrame) -> pandas.Series:
    """Groups of pictures that look alike. A blank picture looks like none: its hash is noise."""
    import pandas as pd

    rows = np.flatnonzero(
        table["image_phash"].notna() & (table["image_contrast"] > BLANK_CONTRAST).fillna(False)
    )
    hashes = table["image_phash"].iloc[rows].to_numpy(dtype=np.uint64)
    colours = np.frombuffer(b"".join(table["image_colours"].iloc[rows]), np.uint8)
    colours = colours.reshape(len(rows), 3 * CELLS * CELLS)
    parent = np.arange(len(rows))
    for left, right in _neighbours(hashes):
        apart = parent[left] != parent[right]
        left, right = left[apart], right[apart]
        near = _differing_bits(hashes[left], hashes[right]) <= NEAR_BITS
        left, right = left[near], right[near]
        near = np.abs(colours[left].astype(np.int16) - colours[right]).mean(axis=1) <= NEAR_COLOUR
        _unite(parent, left[near], right[near])
    roots = pd.Series(pd.NA, index=table.index, dtype="Int64")
    roots.iloc[rows] = parent
    return _groups(roots)


def _neighbours(
    hashes: NDArray[np.uint64],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of pictures that may be within `NEAR_BITS`, all that are among them; a pair may come
    more than once.
    """
    edges = np.linspace(0, LOW * LOW, _BANDS + 1).astype(np.uint64)
    for low, high in pairwise(edges):
        band = (hashes >> low) & np.uint64((1 << int(high - low)) - 1)
        order = np.lexsort((hashes, band))
        band = band[order]
        for distance in range(1, min(_REACH, len(order))):
            places = np.flatnonzero(band[distance:] == band[:-distance])
            if not len(places):
                break
            yield order[places], order[places + distance]


def _differing_bits(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.int64]:
    return np.unpackbits((left ^ right).view(np.uint8).reshape(-1, 8), axis=1).sum(
        axis=1, dtype=np.int64
    )


def _unite(parent: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
    """Join the groups of each pair. ``parent`` is every member's first relative, before and
    after.
    """
    for member, relative in zip(left.tolist(), right.tolist(), strict=True):
        a, b = _root(parent, member), _root(parent, relative)
        parent[max(a, b)] = min(a, b)
    while len(left) and (parent != parent[parent]).any():
        parent[:] = parent[parent]


def _root(parent: NDArray[np.int64], place: int) -> int:
    while parent[place] != place:
        place = int(parent[place])
    return place
