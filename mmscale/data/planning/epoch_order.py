"""The order of one data set's sequences, as a function of position: no state, no table of the
samples.

Samples are stored in *blocks* of neighbours. A *group* is a few blocks from all over the data set;
its samples are packed together into sequences. The groups, and so the number of sequences of each,
do not depend on the seed; everything else is drawn anew every epoch:

    position in the epoch → window of groups           (search in a cumulative sum over groups)
                          → group, sequence inside it  (keyed permutation of the window's sequences)
                          → samples                    (the group's packing for this epoch, cached)

Every sample belongs to one block, every block to one group, every group to one window of an epoch,
and a group's packing places every sample once: so each sample appears exactly once an epoch, by
construction.

The number of sequences of a group follows from its lengths alone (`packing.bin_count`). One pass
over the index counts them (`count_groups`); they are kept beside it, a few bytes a group, so that
a start reads them back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mmscale import prf
from mmscale.data.planning.packing import bin_count, shuffled_bins
from mmscale.data.planning.sample_sizes import SampleMeasure, SampleSizes
from mmscale.data.worker_pool import WorkerPool

# Raise it when a change here or in `packing` changes the number of sequences of a group.
COUNT_VERSION = 1

Value = TypeVar("Value")

_LEAST_BLOCKS = 8
_MOST_BLOCKS = 128
_WANTED_SEQUENCES = 128
_LOOKED_AT = 16
_GROUPS_PER_TASK = 32

_CACHED_GROUPS = 64
_CACHED_WINDOWS = 8
_CACHED_EPOCHS = 2


class Layout:
    """Which samples form a group: the same in every epoch and for every seed.

    Args:
        samples: of the data set.
        block: neighbouring samples that stay together.
        group_blocks: blocks of a group.
    """

    def __init__(self, samples: int, block: int, group_blocks: int) -> None:
        self._samples, self._block, self.group_blocks = samples, block, group_blocks
        self._blocks = -(-samples // block)
        self._shuffle = prf.Permutation(prf.derive_key("blocks"), self._blocks)
        self.groups = -(-self._blocks // group_blocks)

    def members(self, group: int) -> NDArray[np.int64]:
        """Samples of a group, ascending."""
        slots = np.arange(
            group * self.group_blocks, min(self._blocks, (group + 1) * self.group_blocks)
        )
        blocks = np.sort(self._shuffle(slots))
        samples = (blocks[:, None] * self._block + np.arange(self._block)).reshape(-1)
        return samples[samples < self._samples]


def choose_group_blocks(samples: int, block: int, measure: SampleMeasure, capacity: int) -> int:
    """Blocks of a group where the config leaves it open: 8, doubled until they fill about 128
    sequences.

    The last sequence of a group is only partly full, so a group of few sequences wastes much.
    Judged by a few groups from all over the data set.
    """
    layout = Layout(samples, block, _LEAST_BLOCKS)
    looked_at = np.unique(np.linspace(0, layout.groups - 1, _LOOKED_AT).astype(np.int64))
    tokens = np.median(
        [measure.sizes(layout.members(group)).tokens.sum() for group in looked_at.tolist()]
    )
    blocks = _LEAST_BLOCKS
    while (
        0 < tokens < capacity * _WANTED_SEQUENCES
        and blocks * block < samples
        and blocks < _MOST_BLOCKS
    ):
        blocks, tokens = 2 * blocks, 2 * tokens
    return blocks


@dataclass(frozen=True)
class GroupCounts:
    """What one pass over a set's index shows of its packing."""

    sequences: NDArray[np.int64]  # [groups]
    samples: int  # that are used
    oversize: int  # samples refused because they are longer than a sequence
    shortest: int  # tokens of the shortest refused sample; 0: none was refused
    tokens: int  # of all used samples

    def to_array(self) -> NDArray[np.int64]:
        """int64 [4 + groups], to be kept in a file."""
        return np.concatenate(
            [[self.samples, self.oversize, self.shortest, self.tokens], self.sequences]
        )

    @classmethod
    def from_array(cls, array: NDArray[np.int64]) -> GroupCounts:
        """The inverse of `to_array`."""
        return cls(np.asarray(array[4:]), *array[:4].tolist())


def count_groups(
    layout: Layout,
    measure: SampleMeasure,
    capacity: int,
    *,
    workers: int = 1,
    progress: bool = False,
    name: str = "",
) -> GroupCounts:
    """Pack every group once, in thought, on several processes. Reads the index, no payload."""
    starts = range(0, layout.groups, _GROUPS_PER_TASK)
    tasks = [(layout, measure, capacity, start) for start in starts]
    counted: list[GroupCounts | None] = [None] * len(tasks)
    # Processes take a second to start, which a small set is counted in.
    workers = workers if len(tasks) > _GROUPS_PER_TASK else 1
    with (
        tqdm(
            total=layout.groups,
            desc=f"count sequences of {name}",
            unit="group",
            disable=not progress,
        ) as bar,
        WorkerPool(workers) as pool,
    ):
        for number, counts in pool.run(_count_some, tasks, len(tasks)):
            counted[number] = counts
            bar.update(len(counts.sequences))
    parts = [part for part in counted if part is not None]
    return GroupCounts(
        np.concatenate([part.sequences for part in parts]),
        sum(part.samples for part in parts),
        sum(part.oversize for part in parts),
        min((part.shortest for part in parts if part.oversize), default=0),
        sum(part.tokens for part in parts),
    )


def _count_some(task: tuple[Layout, SampleMeasure, int, int]) -> GroupCounts:
    layout, measure, capacity, start = task
    groups = range(start, min(start + _GROUPS_PER_TASK, layout.groups))
    group_sizes = [measure.sizes(layout.members(group)) for group in groups]
    used = [sizes.tokens[sizes.tokens > 0] for sizes in group_sizes]
    refused = np.concatenate([sizes.refused_tokens for sizes in group_sizes])
    return GroupCounts(
        np.array([bin_count(lengths, capacity) for lengths in used], np.int64),
        sum(len(lengths) for lengths in used),
        len(refused),
        int(refused.min()) if len(refused) else 0,
        sum(int(lengths.sum()) for lengths in used),
    )


@dataclass(frozen=True)
class _Packing:
    """A packed group. Sequence i holds ``samples[ends[i - 1]:ends[i]]`` and ``totals[i]``."""

    samples: NDArray[np.int64]
    ends: NDArray[np.int64]
    totals: NDArray[np.float64]  # [sequences, totals], in the order of `total_names`


class SequenceOrder:
    """Which samples share a sequence and when, for one data set.

    Args:
        layout: its groups.
        counts: int64 [groups], sequences of each.
        measure: gives the lengths of samples.
        capacity: tokens of one sequence.
        window_groups: groups whose sequences are shuffled together.
        key: from (seed, name of the data set).
    """

    def __init__(
        self,
        layout: Layout,
        counts: NDArray[np.int64],
        measure: SampleMeasure,
        capacity: int,
        *,
        window_groups: int,
        key: int,
    ) -> None:
        assert len(counts) == layout.groups
        self._layout, self._counts, self._measure = layout, counts, measure
        self._capacity, self._window_groups, self._key = capacity, window_groups, key
        self.sequences_per_epoch = int(counts.sum())
        self._epochs: OrderedDict[Hashable, tuple[NDArray[np.int64], NDArray[np.int64]]] = (
            OrderedDict()
        )
        self._windows: OrderedDict[Hashable, tuple[NDArray[np.int64], NDArray[np.int64]]] = (
            OrderedDict()
        )
        self._packings: OrderedDict[Hashable, _Packing] = OrderedDict()

    def sequence(self, epoch: int, position: int) -> tuple[NDArray[np.int64], list[float]]:
        """(samples int64 [k], totals in the order of `total_names`) of a sequence of an epoch."""
        groups, ends = self._epoch(epoch)
        window = int(np.searchsorted(ends, position, side="right"))
        start = int(ends[window - 1]) if window else 0
        in_window = groups[window * self._window_groups : (window + 1) * self._window_groups]
        slots, inside = self._window(epoch, window, in_window)
        packing = self._packing(epoch, int(in_window[slots[position - start]]))
        row = int(inside[position - start])
        first = int(packing.ends[row - 1]) if row else 0
        return packing.samples[first : int(packing.ends[row])], packing.totals[row].tolist()

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Groups in the order in which the epoch visits them, and the end of every window in
        sequences.
        """
        cached = _recall(self._epochs, epoch)
        if cached is None:
            order = prf.Permutation(prf.derive_key(self._key, "groups", epoch), self._layout.groups)
            groups = order(np.arange(self._layout.groups))
            last = np.arange(self._window_groups - 1, self._layout.groups - 1, self._window_groups)
            ends = np.cumsum(self._counts[groups])[np.append(last, self._layout.groups - 1)]
            cached = _keep(self._epochs, epoch, (groups, ends), _CACHED_EPOCHS)
        return cached

    def _window(
        self, epoch: int, window: int, groups: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For every position of a window: which of its groups, and which sequence of that."""
        cached = _recall(self._windows, (epoch, window))
        if cached is None:
            ends = np.cumsum(self._counts[groups])
            shuffle = prf.Permutation(
                prf.derive_key(self._key, "window", epoch, window), int(ends[-1])
            )
            chosen = shuffle(np.arange(int(ends[-1])))
            slots = np.searchsorted(ends, chosen, side="right")
            inside = chosen - np.append(0, ends)[slots]
            cached = _keep(self._windows, (epoch, window), (slots, inside), _CACHED_WINDOWS)
        return cached

    def _packing(self, epoch: int, group: int) -> _Packing:
        packing = _recall(self._packings, (epoch, group))
        if packing is None:
            members = self._layout.members(group)
            sizes = self._measure.sizes(members)
            used = np.flatnonzero(sizes.tokens)
            key = prf.derive_key(self._key, "group", epoch, group)
            bins = shuffled_bins(sizes.tokens[used], self._capacity, int(self._counts[group]), key)
            ends = np.cumsum([len(items) for items in bins])
            flat = used[[item for items in bins for item in items]]
            totals = _totals(sizes, flat, ends)
            packing = _keep(
                self._packings,
                (epoch, group),
                _Packing(members[flat], ends, totals),
                _CACHED_GROUPS,
            )
        return packing


def _totals(
    sizes: SampleSizes, flat: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.float64]:
    """float64 [sequences, totals]: sums over the samples of each."""
    columns = sizes.totals()[:, flat]
    sums = np.concatenate([np.zeros((len(columns), 1)), np.cumsum(columns, axis=1)], axis=1)
    starts = np.append(0, ends[:-1])
    return (sums[:, ends] - sums[:, starts]).T


def _recall(cache: OrderedDict[Hashable, Value], key: Hashable) -> Value | None:
    if key in cache:
        cache.move_to_end(key)
    return cache.get(key)


def _keep(cache: OrderedDict[Hashable, Value], key: Hashable, value: Value, most: int) -> Value:
    cache[key] = value
    if len(cache) > most:
        cache.popitem(last=False)
    return value
