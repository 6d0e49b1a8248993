"""Groups: the blocks whose samples are packed together, the same in every epoch and for every seed.

The blocks of a set stand in a shuffled row, which is cut into groups. A group holds few sequences,
so that little lies on the disk while it is read, but the last sequence of a group is only partly
full. So each cut is made, of some that are possible, where the sequences are full.

How many sequences a group packs into depends on its lengths alone (`packing.bin_count`). One pass
over the index cuts and counts (`count_groups`); the result is kept beside the index, a few bytes a
group, so that a start reads it back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mmscale import prf
from mmscale.data.planning.packing import bin_count
from mmscale.data.planning.sample_sizes import SampleMeasure
from mmscale.data.worker_pool import WorkerPool

# Raise it when a change here or in `packing` changes the groups or their sequences.
COUNT_VERSION = 2

LEAST_BLOCKS = 8
_MOST_BLOCKS = 128
LEAST_SEQUENCES = 16
_FULL = 0.99  # enough for a cut: the first that has it is taken
_SLACK = 0.006  # of each sequence, left to packing: exchanges that fill it cost time
# Blocks that are cut and counted together: a task for a process, whatever their number.
_SECTION_BLOCKS = 2048


class GroupLayout:
    """Which samples form a group.

    Args:
        samples: of the data set.
        block: neighbouring samples that stay together.
        group_blocks: int64 [groups], blocks of each group.
    """

    def __init__(self, samples: int, block: int, group_blocks: NDArray[np.int64]) -> None:
        self._row = _BlockRow(samples, block)
        self.block, self.groups = block, len(group_blocks)
        self._ends: NDArray[np.int64] = np.cumsum(group_blocks)
        assert int(self._ends[-1]) == self._row.blocks

    def members(self, groups: list[int]) -> list[NDArray[np.int64]]:
        """Samples of each of the groups, ascending."""
        ends = self._ends[groups]
        sizes = ends - np.where(np.array(groups) > 0, self._ends[np.array(groups) - 1], 0)
        places = np.arange(sizes.sum()) + np.repeat(ends - np.cumsum(sizes), sizes)
        blocks = self._row.at(places)
        parts = np.split(blocks, np.cumsum(sizes)[:-1])
        return [self._row.samples(part) for part in parts]


class _BlockRow:
    """All blocks of a set in their shuffled row."""

    def __init__(self, samples: int, block: int) -> None:
        self._samples, self.block = samples, block
        self.blocks = -(-samples // block)
        self._shuffle = prf.Permutation(prf.derive_key("blocks"), self.blocks)

    def at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64 [n]: the blocks at places of the row."""
        return self._shuffle(places)

    def samples(self, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Samples of the blocks, ascending."""
        samples = (np.sort(blocks)[:, None] * self.block + np.arange(self.block)).reshape(-1)
        return samples[samples < self._samples]


@dataclass(frozen=True, kw_only=True)
class GroupCounts:
    """What one pass over a set's index shows of its packing."""

    blocks: NDArray[np.int64]  # [groups]
    sequences: NDArray[np.int64]  # [groups]
    samples: int  # that are used
    cut: int  # samples that are cut because they are longer than a sequence
    oversize: int  # samples refused because they are longer than a sequence
    shortest: int  # tokens of the shortest refused sample; 0: none was refused
    tokens: int  # of all used samples

    def to_array(self) -> NDArray[np.int64]:
        """int64 [5 + 2 * groups], to be kept in a file."""
        totals = [self.samples, self.cut, self.oversize, self.shortest, self.tokens]
        return np.concatenate([totals, self.blocks, self.sequences]).astype(np.int64)

    @classmethod
    def from_array(cls, array: NDArray[np.int64]) -> GroupCounts:
        """The inverse of `to_array`."""
        blocks, sequences = np.asarray(array[5:]).reshape(2, -1)
        samples, cut, oversize, shortest, tokens = array[:5].tolist()
        return cls(
            blocks=blocks, sequences=sequences, samples=samples, cut=cut, oversize=oversize,
            shortest=shortest, tokens=tokens,
        )  # fmt: skip


def count_groups(
    samples: int,
    block: int,
    measure: SampleMeasure,
    capacity: int,
    *,
    group_blocks: int = 0,
    workers: int = 1,
    progress: bool = False,
    name: str = "",
) -> GroupCounts:
    """Cut a set into groups and pack each once, in thought, on several processes.

    Reads the index, no payload. The result does not depend on ``workers``.

    Args:
        samples: of the data set.
        block: neighbouring samples that stay together.
        measure: gives the lengths of samples.
        capacity: tokens of one sequence.
        group_blocks: blocks of every group; 0: at least 8, and enough for 16 sequences.
        workers: processes.
        progress: show a bar.
        name: of the set, for the bar.
    """
    row = _BlockRow(samples, block)
    # Groups do not cross sections. Those of a fixed size are not cut short by their end.
    whole = group_blocks or 1
    section = -(-_SECTION_BLOCKS // whole) * whole
    starts = range(0, row.blocks, section)
    tasks = [(row, measure, capacity, group_blocks, start, section) for start in starts]
    counted: list[GroupCounts | None] = [None] * len(tasks)
    # Processes take a second to start, which a small set is counted in.
    workers = workers if len(tasks) > 1 and samples > 100_000 else 1
    with (
        tqdm(
            total=row.blocks, desc=f"count sequences of {name}", unit="block", disable=not progress
        ) as bar,
        WorkerPool(workers) as pool,
    ):
        for number, counts in pool.run(_count_section, tasks, len(tasks)):
            counted[number] = counts
            bar.update(int(counts.blocks.sum()))
    return _joined([part for part in counted if part is not None])


def _joined(parts: list[GroupCounts]) -> GroupCounts:
    return GroupCounts(
        blocks=np.concatenate([part.blocks for part in parts]),
        sequences=np.concatenate([part.sequences for part in parts]),
        samples=sum(part.samples for part in parts),
        cut=sum(part.cut for part in parts),
        oversize=sum(part.oversize for part in parts),
        shortest=min((part.shortest for part in parts if part.oversize), default=0),
        tokens=sum(part.tokens for part in parts),
    )


def _count_section(task: tuple[_BlockRow, SampleMeasure, int, int, int, int]) -> GroupCounts:
    row, measure, capacity, group_blocks, start, section = task
    end = min(start + section, row.blocks)
    row_blocks = row.at(np.arange(start, end))
    samples = row.samples(row_blocks)
    sizes = measure.sizes(samples)
    order = np.argsort(row_blocks)
    # The place in the section of the block of every sample, or of every part of one.
    place = order[np.searchsorted(row_blocks[order], samples // row.block)][sizes.rows]
    by_block = np.bincount(place, weights=sizes.tokens, minlength=end - start)
    if group_blocks:
        blocks = _fixed(end - start, group_blocks)
    else:
        blocks = _cut_row(by_block, capacity)
    group = np.repeat(np.arange(len(blocks)), blocks)[place]
    used = sizes.tokens > 0
    in_order = np.argsort(group[used], kind="stable")
    lengths = np.split(
        sizes.tokens[used][in_order],
        np.cumsum(np.bincount(group[used], minlength=len(blocks)))[:-1],
    )
    return GroupCounts(
        blocks=blocks,
        sequences=np.array([bin_count(of_group, capacity) for of_group in lengths], np.int64),
        samples=int((used & (sizes.parts == 0)).sum()),
        cut=int((sizes.parts == 1).sum()),
        oversize=len(sizes.refused_tokens),
        shortest=int(sizes.refused_tokens.min()) if len(sizes.refused_tokens) else 0,
        tokens=int(sizes.tokens.sum()),
    )


def _fixed(blocks: int, group_blocks: int) -> NDArray[np.int64]:
    ends = np.append(np.arange(group_blocks, blocks, group_blocks), blocks)
    return np.diff(ends, prepend=0)


def _cut_row(tokens: NDArray[np.number], capacity: int) -> NDArray[np.int64]:
    """int64 [groups], blocks of each, for a row of blocks with so many ``tokens`` each."""
    ends = np.cumsum(tokens)
    cuts = [0]
    while True:
        start = cuts[-1]
        before = ends[start - 1] if start else 0.0
        enough = int(np.searchsorted(ends, before + LEAST_SEQUENCES * capacity)) + 1
        least = max(start + LEAST_BLOCKS, min(enough, start + _MOST_BLOCKS))
        # What would be left must make a group itself.
        if len(tokens) - least < least - start:
            return np.diff([*cuts, len(tokens)]).astype(np.int64)
        most = min(least + (least - start), len(tokens) - (least - start))
        sequences = (ends[least - 1 : most] - before) / capacity
        fill = sequences / np.maximum(np.ceil(sequences * (1 + _SLACK)), 1)
        full = np.flatnonzero(fill >= _FULL)
        cuts.append(least + int(full[0] if len(full) else np.argmax(fill)))
