"""The order of one data set's sequences, as a function of place: no state, no table of the samples.

Samples are stored in *blocks* of neighbours. A *group* is a few blocks from all over the data set;
its samples are packed together into sequences (`groups`). The groups, and so the number of
sequences of each, do not depend on the seed; everything else is drawn anew every epoch. An epoch's
sequences stand in a row:

    place in the row → window of groups           (search in a cumulative sum over groups)
                     → group, sequence inside it  (keyed permutation of the window's sequences)
                     → samples                    (the group's packing for this epoch, cached)

Every sample belongs to one block, every block to one group, every group to one window of an epoch,
and a group's packing places every sample once: so each sample appears exactly once an epoch, by
construction. Which place of the row has which turn is for `lanes` to say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmscale import prf
from mmscale.data.planning.bounded_cache import BoundedCache
from mmscale.data.planning.groups import GroupLayout
from mmscale.data.planning.packing import shuffled_bins
from mmscale.data.planning.sample_sizes import SampleMeasure

_CACHED_EPOCHS = 2
# Beyond those that are read at a time, which may be as many as the lanes of two epochs.
_CACHED_GROUPS = 64


@dataclass(frozen=True)
class _Packing:
    """A packed group. Sequence i holds ``samples[ends[i - 1]:ends[i]]`` and ``totals[i]``."""

    samples: NDArray[np.int64]
    parts: NDArray[np.int64]  # of those
    ends: NDArray[np.int64]
    totals: NDArray[np.float64]  # [sequences, totals], in the order of `total_names`


@dataclass(frozen=True)
class _Found:
    """Where a sequence is: its group, its row in the packing, and its window."""

    group: int
    row: int
    window: int
    window_end: int


@dataclass(frozen=True, kw_only=True)
class OrderedSequence:
    """One sequence of an epoch's row."""

    samples: NDArray[np.int64]  # [k]
    parts: NDArray[np.int64]  # [k], of samples that are cut; else 0
    totals: list[float]  # in the order of `total_names`
    window: int  # of its epoch
    window_end: int  # place in the row where the window ends


class SequenceOrder:
    """Which samples share a sequence and when, for one data set.

    Args:
        layout: its groups.
        counts: int64 [groups], sequences of each.
        measure: gives the lengths of samples.
        capacity: tokens of one sequence.
        window_groups: groups whose sequences are shuffled together.
        open_groups: groups that are read at a time, to be kept in memory.
        key: from (seed, name of the data set).
    """

    def __init__(
        self,
        layout: GroupLayout,
        counts: NDArray[np.int64],
        measure: SampleMeasure,
        capacity: int,
        *,
        window_groups: int,
        open_groups: int = 0,
        key: int,
    ) -> None:
        assert len(counts) == layout.groups
        self._layout, self._counts, self._measure = layout, counts, measure
        self._capacity, self._window_groups, self._key = capacity, window_groups, key
        self.sequences_per_epoch = int(counts.sum())
        kept = _CACHED_GROUPS + 2 * open_groups
        self._epochs: BoundedCache[tuple[NDArray[np.int64], NDArray[np.int64]]] = BoundedCache(
            _CACHED_EPOCHS
        )
        self._windows: BoundedCache[tuple[NDArray[np.int64], NDArray[np.int64]]] = BoundedCache(
            kept
        )
        self._packings: BoundedCache[_Packing] = BoundedCache(kept)

    def sequence(self, epoch: int, place: int) -> OrderedSequence:
        """The sequence at a place of an epoch's row, 0 ≤ ``place`` < ``sequences_per_epoch``."""
        return self.sequences([(epoch, place)])[0]

    def sequences(self, wanted: list[tuple[int, int]]) -> list[OrderedSequence]:
        """`sequence` of many (epoch, place), in the time of fewer."""
        found = [self._find(epoch, place) for epoch, place in wanted]
        packed = self._packed(
            [(epoch, at.group) for (epoch, _), at in zip(wanted, found, strict=True)]
        )
        out = []
        for (epoch, _), at in zip(wanted, found, strict=True):
            packing = packed[epoch, at.group]
            first = int(packing.ends[at.row - 1]) if at.row else 0
            mine = slice(first, int(packing.ends[at.row]))
            out.append(
                OrderedSequence(
                    samples=packing.samples[mine],
                    parts=packing.parts[mine],
                    totals=packing.totals[at.row].tolist(),
                    window=at.window,
                    window_end=at.window_end,
                )
            )
        return out

    def _find(self, epoch: int, place: int) -> _Found:
        groups, ends = self._epochs.recall(epoch, lambda: self._epoch(epoch))
        window = int(np.searchsorted(ends, place, side="right"))
        start = int(ends[window - 1]) if window else 0
        in_window = groups[window * self._window_groups : (window + 1) * self._window_groups]
        slots, inside = self._windows.recall(
            (epoch, window), lambda: self._window(epoch, window, in_window)
        )
        slot = int(slots[place - start])
        return _Found(int(in_window[slot]), int(inside[place - start]), window, int(ends[window]))

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Groups in the order of the epoch's row, and the end of every window in sequences."""
        order = prf.Permutation(prf.derive_key(self._key, "groups", epoch), self._layout.groups)
        groups = order(np.arange(self._layout.groups))
        last = np.arange(self._window_groups - 1, self._layout.groups - 1, self._window_groups)
        ends = np.cumsum(self._counts[groups])[np.append(last, self._layout.groups - 1)]
        return groups, ends

    def _window(
        self, epoch: int, window: int, groups: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For every place of a window: which of its groups, and which sequence of that."""
        ends = np.cumsum(self._counts[groups])
        drawn = prf.uniform(prf.derive_key(self._key, "window", epoch, window), int(ends[-1]))
        chosen = np.argsort(drawn, kind="stable")
        slots = np.searchsorted(ends, chosen, side="right")
        return slots, chosen - np.append(0, ends)[slots]

    def _packed(self, wanted: list[tuple[int, int]]) -> dict[tuple[int, int], _Packing]:
        """The packing of every (epoch, group); those that are not kept are measured all at once."""
        packed = {one: self._packings[one] for one in wanted if one in self._packings}
        missing = [one for one in dict.fromkeys(wanted) if one not in packed]
        if not missing:
            return packed
        members = self._layout.members([group for _, group in missing])
        sizes = self._measure.sizes(np.concatenate(members))
        samples, totals = np.concatenate(members)[sizes.rows], sizes.totals()
        ends = np.searchsorted(sizes.rows, np.cumsum([len(some) for some in members]))
        for (epoch, group), start, end in zip(missing, [0, *ends[:-1]], ends, strict=True):
            mine = slice(int(start), int(end))
            packed[epoch, group] = self._packing(
                epoch, group, samples[mine], sizes.parts[mine], sizes.tokens[mine], totals[:, mine]
            )
            self._packings.keep((epoch, group), packed[epoch, group])
        return packed

    def _packing(
        self,
        epoch: int,
        group: int,
        samples: NDArray[np.int64],
        parts: NDArray[np.int64],
        tokens: NDArray[np.int64],
        totals: NDArray[np.float64],
    ) -> _Packing:
        used = np.flatnonzero(tokens)
        key = prf.derive_key(self._key, "group", epoch, group)
        bins = shuffled_bins(tokens[used], self._capacity, int(self._counts[group]), key)
        ends = np.cumsum([len(items) for items in bins])
        flat = used[[item for items in bins for item in items]]
        return _Packing(samples[flat], parts[flat], ends, _sums(totals[:, flat], ends))


def _sums(columns: NDArray[np.float64], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 [sequences, totals]: sums of [totals, samples] over the samples of each."""
    sums = np.concatenate([np.zeros((len(columns), 1)), np.cumsum(columns, axis=1)], axis=1)
    starts = np.append(0, ends[:-1])
    return (sums[:, ends] - sums[:, starts]).T
