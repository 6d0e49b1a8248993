"""What a machine fetches next and what it drops, from the known future of its reads. No IO.

The order of a run is known, so nothing is guessed (Dryden et al., "Clairvoyant prefetching for
distributed machine learning I/O", SC 2021). A block is *held* from its first use until every
window that reads it here is done, and all ranks of the machine have what they needed of it. Then
it is *released*: it stays on the disk while there is room, because another epoch reads it again.
The block that was released last goes first. The next epoch deals all blocks anew, so each released
block is equally likely to be needed here at any time of it; giving up the newest keeps the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from mmscale.data.planning.step_plan import PlannedSequence


class SampleBlock(NamedTuple):
    """A run of neighbouring samples of one set of a plan."""

    set_index: int
    number: int


class _Hold(NamedTuple):
    """A window of groups as one lane reads it."""

    set_index: int
    lane: int
    epoch: int
    window: int


class Lookahead:
    """Follows the steps of one machine.

    Args:
        reads: what the machine reads at a step (`Plan.node_share`).
        block_samples: of each set, samples of a block; 0: a local set, of which nothing is fetched.
        size: bytes of a block on the disk.
        is_there: whether a block is on the disk.
        start: the first step.
        released: blocks that are on the disk at the start, the ones to drop first at the end.

    Attributes:
        held_bytes: of blocks that were taken and are needed.
        needed_bytes: of these, and of those that are to be taken.
        released_bytes: of blocks that are on the disk and not needed soon.
        looked: steps before this one have been looked at.
    """

    def __init__(
        self,
        reads: Callable[[int], Iterable[PlannedSequence]],
        block_samples: list[int],
        *,
        size: Callable[[SampleBlock], int],
        is_there: Callable[[SampleBlock], bool],
        start: int,
        released: Iterable[SampleBlock] = (),
    ) -> None:
        self._reads, self._block_samples = reads, block_samples
        self._size, self._is_there = size, is_there
        self.looked = start
        self._queue: deque[SampleBlock] = deque()  # needed and not there, in the order of first use
        self._holds: dict[_Hold, set[SampleBlock]] = {}
        self._by_lane: dict[tuple[int, int], list[_Hold]] = {}
        self._users: dict[SampleBlock, int] = {}  # holds of a block
        self._first: dict[SampleBlock, int] = {}  # of those that are not there: the step that waits
        self._last: dict[SampleBlock, int] = {}  # the last step that was seen to read it
        self._ending: dict[int, list[_Hold]] = {}  # by the step after which they end
        self._taken: set[SampleBlock] = set()
        self._released = dict.fromkeys(released)
        self.held_bytes = self.needed_bytes = 0
        self.released_bytes = sum(map(size, self._released))

    def look(self, until: int) -> None:
        """Look at the steps before ``until`` that were not looked at yet."""
        while self.looked < until:
            for sequence in self._reads(self.looked):
                if self._block_samples[sequence.set_index]:
                    self._see(sequence, self.looked)
            self.looked += 1

    def next(self) -> SampleBlock | None:
        """The block to fetch next; None: all that was looked at is there or taken."""
        while self._queue and self._queue[0] not in self._first:
            self._queue.popleft()  # its windows ended unread: what is read was dealt anew
        return self._queue[0] if self._queue else None

    def take(self) -> SampleBlock:
        """`next`, whose fetching begins: from now on it counts among those held."""
        block = self._queue.popleft()
        del self._first[block]
        self._hold(block)
        return block

    def first_use(self, block: SampleBlock) -> int:
        """The step that waits for a block; `looked` if none does."""
        return self._first.get(block, self.looked)

    def consumed(self, step: int) -> list[SampleBlock]:
        """All ranks of the machine have the batches of ``step`` and before; the blocks released."""
        out = []
        for ended in sorted(at for at in self._ending if at <= step):
            for hold in self._ending.pop(ended):
                out += self._end(hold)
        return out

    def give_up(self, wanted: int) -> list[SampleBlock]:
        """Released blocks of at least ``wanted`` bytes, as far as there are so many, to be
        removed.
        """
        out = []
        while wanted > 0 and self._released:
            block, _ = self._released.popitem()
            size = self._size(block)
            wanted, self.released_bytes = wanted - size, self.released_bytes - size
            out.append(block)
        return out

    def surrender(self, wanted: int, step: int) -> list[SampleBlock]:
        """Held blocks of at least ``wanted`` bytes that no step after ``step`` was seen to read, as
        far as there are so many, to be removed: they will be fetched again.

        For a disk that is too small for what is held.
        """
        out = []
        for block in sorted(self._taken, key=lambda block: self._last[block]):
            if wanted <= 0 or self._last[block] > step:
                break
            self._taken.remove(block)
            size = self._size(block)
            self.held_bytes, self.needed_bytes = self.held_bytes - size, self.needed_bytes - size
            wanted -= size
            out.append(block)
        return out

    def _see(self, sequence: PlannedSequence, step: int) -> None:
        lane = sequence.set_index, sequence.lane
        hold = _Hold(*lane, sequence.epoch, sequence.window)
        if hold not in self._holds:
            # Where several machines share a lane, another one may draw the last of a window.
            for earlier in self._by_lane.get(lane, []):
                self._ending.setdefault(step, []).append(earlier)
            self._by_lane[lane] = [hold]
            self._holds[hold] = set()
        numbers = sequence.samples // self._block_samples[sequence.set_index]
        for number in np.unique(numbers).tolist():
            block = SampleBlock(sequence.set_index, number)
            if block not in self._holds[hold]:
                self._holds[hold].add(block)
                self._users[block] = self._users.get(block, 0) + 1
            self._last[block] = step
            if block not in self._taken and block not in self._first:
                self._need(block, step)
        if sequence.left == 0 and hold in self._by_lane.get(lane, []):
            self._by_lane[lane].remove(hold)
            self._ending.setdefault(step, []).append(hold)

    def _need(self, block: SampleBlock, step: int) -> None:
        if block in self._released:
            del self._released[block]
            self.released_bytes -= self._size(block)
        self.needed_bytes += self._size(block)
        if self._is_there(block):
            self._hold(block)
        else:  # perhaps another process removed it
            self._first[block] = step
            self._queue.append(block)

    def _hold(self, block: SampleBlock) -> None:
        self._taken.add(block)
        self.held_bytes += self._size(block)

    def _end(self, hold: _Hold) -> list[SampleBlock]:
        out = []
        for block in self._holds.pop(hold):
            self._users[block] -= 1
            if self._users[block]:
                continue
            del self._users[block], self._last[block]
            if block not in self._taken:
                if self._first.pop(block, None) is not None:
                    self.needed_bytes -= self._size(block)
                continue
            self._taken.remove(block)
            self._released[block] = None
            size = self._size(block)
            self.held_bytes, self.needed_bytes = self.held_bytes - size, self.needed_bytes - size
            self.released_bytes += size
            out.append(block)
        return out
