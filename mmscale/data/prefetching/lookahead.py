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


class Block(NamedTuple):
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
        released_bytes: of blocks that are on the disk and not needed soon.
        looked: steps before this one have been looked at.
    """

    def __init__(
        self,
        reads: Callable[[int], Iterable[PlannedSequence]],
        block_samples: list[int],
        *,
        size: Callable[[Block], int],
        is_there: Callable[[Block], bool],
        start: int,
        released: Iterable[Block] = (),
    ) -> None:
        self._reads, self._block_samples = reads, block_samples
        self._size, self._is_there = size, is_there
        self.looked = start
        self._queue: deque[Block] = deque()  # needed and not there, in the order of first use
        self._holds: dict[_Hold, set[Block]] = {}
        self._by_lane: dict[tuple[int, int], list[_Hold]] = {}
        self._users: dict[Block, int] = {}  # holds of a block
        self._first: dict[Block, int] = {}  # step, of those
        self._ending: dict[int, list[_Hold]] = {}  # by the step after which they end
        self._taken: set[Block] = set()
        self._released = dict.fromkeys(released)
        self.held_bytes = 0
        self.released_bytes = sum(map(size, self._released))

    def look(self, until: int) -> None:
        """Look at the steps before ``until`` that were not looked at yet."""
        while self.looked < until:
            for sequence in self._reads(self.looked):
                if self._block_samples[sequence.set_index]:
                    self._see(sequence, self.looked)
            self.looked += 1

    def next(self) -> Block | None:
        """The block to fetch next; None: all that was looked at is there or taken."""
        # What is no longer needed was never read, because what a machine reads was dealt anew.
        while self._queue and (self._queue[0] not in self._users or self._queue[0] in self._taken):
            self._queue.popleft()
        return self._queue[0] if self._queue else None

    def take(self) -> Block:
        """`next`, whose fetching begins: from now on it counts among those held."""
        block = self._queue.popleft()
        self._hold(block)
        return block

    def first_use(self, block: Block) -> int:
        """The step at which a block that is needed is read first; `looked` if it is not needed."""
        return self._first.get(block, self.looked)

    def consumed(self, step: int) -> list[Block]:
        """All ranks of the machine have the batches of ``step`` and before; the blocks released."""
        out = []
        for ended in sorted(at for at in self._ending if at <= step):
            for hold in self._ending.pop(ended):
                out += self._end(hold)
        return out

    def give_up(self, wanted: int) -> list[Block]:
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
            block = Block(sequence.set_index, number)
            if block not in self._holds[hold]:
                self._holds[hold].add(block)
                self._need(block, step)
        if sequence.left == 0 and hold in self._by_lane.get(lane, []):
            self._by_lane[lane].remove(hold)
            self._ending.setdefault(step, []).append(hold)

    def _need(self, block: Block, step: int) -> None:
        self._users[block] = self._users.get(block, 0) + 1
        if self._users[block] > 1:
            return
        self._first[block] = step
        if block in self._released:
            del self._released[block]
            self.released_bytes -= self._size(block)
        if self._is_there(block):
            self._hold(block)
        else:  # perhaps another process removed it
            self._queue.append(block)

    def _hold(self, block: Block) -> None:
        self._taken.add(block)
        self.held_bytes += self._size(block)

    def _end(self, hold: _Hold) -> list[Block]:
        out = []
        for block in self._holds.pop(hold):
            self._users[block] -= 1
            if self._users[block]:
                continue
            del self._users[block], self._first[block]
            if block in self._taken:
                self._taken.remove(block)
                self._released[block] = None
                size = self._size(block)
                self.held_bytes, self.released_bytes = (
                    self.held_bytes - size,
                    self.released_bytes + size,
                )
                out.append(block)
        return out
