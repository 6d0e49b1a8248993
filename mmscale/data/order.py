"""The order of one data set's sequences, as a function of position: no state, no table of the samples.

Samples are stored in *blocks* of neighbours. A *group* is a few blocks from all over the data set; its
samples are packed together into sequences. The groups, and so the number of sequences of each, do not depend
on the seed; everything else is drawn anew every epoch:

    position → epoch, position in the epoch          (one division)
             → window of groups                      (search in a cumulative sum over groups)
             → group, sequence inside the group      (keyed permutation of the window's sequences)
             → samples                               (the group's packing for this epoch, cached)

Every sample belongs to one block, every block to one group, every group to one window of an epoch, and a
group's packing places every sample once: so each sample appears exactly once an epoch, by construction.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmscale import prf
from mmscale.data.bins import bin_count, shuffled_bins

_CACHED_GROUPS = 64
_CACHED_EPOCHS = 2


@dataclass(frozen=True)
class Epoch:
    """Group order of one epoch. ``ends[w]`` is the number of sequences up to the end of window w."""

    groups: NDArray[np.int64]  # [groups], in the order they are visited
    ends: NDArray[np.int64]  # [windows]


class SequenceOrder:
    """Which samples share a sequence and when, for one data set.

    Args:
        lengths: uint32 [samples], tokens each sample takes; 0: the sample is left out.
        capacity: tokens of one sequence; every length is at most this.
        block, group_blocks, window_groups: see the module's text; in samples, blocks and groups.
        key: from (seed, name of the data set).
    """

    def __init__(
        self,
        lengths: NDArray[np.uint32],
        capacity: int,
        *,
        block: int,
        group_blocks: int,
        window_groups: int,
        key: int,
    ) -> None:
        assert lengths.size == 0 or int(lengths.max()) <= capacity, "oversize samples are refused before this"
        self._lengths, self._capacity, self._key = lengths, capacity, key
        self._block, self._group_blocks, self._window_groups = block, group_blocks, window_groups
        self._blocks = -(-len(lengths) // block)
        self.groups = -(-self._blocks // group_blocks)
        self.counts = np.array(
            [bin_count(lengths[self._members(g)], capacity) for g in range(self.groups)], dtype=np.int64
        )
        self.sequences_per_epoch = int(self.counts.sum())
        self._epochs: OrderedDict[int, Epoch] = OrderedDict()
        self._packed: OrderedDict[tuple[int, int], list[NDArray[np.int64]]] = OrderedDict()

    def sequence(self, position: int) -> tuple[int, NDArray[np.int64]]:
        """(epoch, samples int64 [k]) of the sequence at ``position`` ≥ 0, counted over all epochs."""
        epoch, inside = divmod(position, self.sequences_per_epoch)
        plan = self._epoch(epoch)
        window = int(np.searchsorted(plan.ends, inside, side="right"))
        start = int(plan.ends[window - 1]) if window else 0
        groups = plan.groups[window * self._window_groups : (window + 1) * self._window_groups]
        ends = np.cumsum(self.counts[groups])
        shuffle = prf.Permutation(prf.derive_key(self._key, "window", epoch, window), int(ends[-1]))
        chosen = int(shuffle(inside - start))
        slot = int(np.searchsorted(ends, chosen, side="right"))
        group = int(groups[slot])
        return epoch, self._packing(epoch, group)[chosen - (int(ends[slot - 1]) if slot else 0)]

    def _members(self, group: int) -> NDArray[np.int64]:
        """Samples of a group that have a length, ascending."""
        slots = np.arange(group * self._group_blocks, min(self._blocks, (group + 1) * self._group_blocks))
        blocks = np.sort(prf.Permutation(prf.derive_key("blocks"), self._blocks)(slots))
        samples = (blocks[:, None] * self._block + np.arange(self._block)).reshape(-1)
        samples = samples[samples < len(self._lengths)]
        return samples[self._lengths[samples] > 0]

    def _epoch(self, epoch: int) -> Epoch:
        if epoch not in self._epochs:
            order = prf.Permutation(prf.derive_key(self._key, "groups", epoch), self.groups)
            groups = order(np.arange(self.groups))
            ends = np.cumsum(self.counts[groups])
            last = np.append(
                np.arange(self._window_groups - 1, self.groups - 1, self._window_groups), self.groups - 1
            )
            self._epochs[epoch] = Epoch(groups, ends[last])
            if len(self._epochs) > _CACHED_EPOCHS:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _packing(self, epoch: int, group: int) -> list[NDArray[np.int64]]:
        found = self._packed.get((epoch, group))
        if found is not None:
            self._packed.move_to_end((epoch, group))
            return found
        members = self._members(group)
        key = prf.derive_key(self._key, "group", epoch, group)
        bins = shuffled_bins(self._lengths[members], self._capacity, int(self.counts[group]), key)
        packed = [members[np.asarray(bin_, dtype=np.int64)] for bin_ in bins]
        self._packed[epoch, group] = packed
        if len(self._packed) > _CACHED_GROUPS:
            self._packed.popitem(last=False)
        return packed
