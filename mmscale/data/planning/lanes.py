"""Lanes: which part of an epoch each place of a step reads, whatever the number of machines.

The sequences of a step are numbered, and neighbouring numbers form a *lane*. A lane reads a
stretch of the epoch of its own, front to back, so the blocks that it needs are its own. A machine
that is given whole lanes fetches what no other machine does. Lanes are part of the order: they
depend on the config and the data set, never on ranks. The idea is that of the canonical nodes of
MosaicML Streaming, with as many as divide a step.

An epoch's sequences stand in a row (`epoch_order`). The row is cut into one stretch for each lane,
as long as the lane will have turns before the epoch ends. How many that are is counted exactly,
from the mixture as it stands when the epoch begins. Where weights change before it ends, what is
left of all stretches is cut anew, so every sequence still has its turn once, and nothing that was
drawn before depends on the change.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST_LANES = 256
# Of the groups of an epoch, one in so many is being read at a time.
_GROUPS_PER_LANE = 50
# Groups that are read at a time, so that they mix, even where that is a larger part of the set.
_LEAST_OPEN_GROUPS = 16


def choose_lanes(sequences: int, groups: int) -> int:
    """Lanes of a set where the config leaves it open: the largest divisor of ``sequences`` that
    keeps at most one group in fifty open at a time, or 16 groups of a small set.
    """
    most = min(max(groups // _GROUPS_PER_LANE, _LEAST_OPEN_GROUPS), groups, _MOST_LANES)
    return max(lanes for lanes in range(1, most + 1) if sequences % lanes == 0)


def choose_window_groups(lanes: int) -> int:
    """Groups of a lane whose sequences are shuffled together, where the config leaves it open."""
    return -(-_LEAST_OPEN_GROUPS // lanes)


class LaneTurns:
    """Counts the turns of one set by lane, at any position, from the table of a period.

    Args:
        owned: bool [period], which positions of a period are the set's; whole steps.
        per_step: positions of a step.
        lanes: divides ``per_step``.
        shift: the place in its step of the first position.
    """

    def __init__(self, owned: NDArray[np.bool_], per_step: int, lanes: int, shift: int = 0) -> None:
        assert len(owned) % per_step == 0 and per_step % lanes == 0 and 0 <= shift < per_step
        self._period, self._per_step, self._width = len(owned), per_step, per_step // lanes
        self._shift = shift
        padded = np.concatenate([np.zeros(shift, bool), owned, np.zeros(per_step - shift, bool)])
        self._rows = padded.reshape(-1, lanes, self._width)
        by_row = np.cumsum(self._rows.sum(axis=2, dtype=np.int64), axis=0)
        self._before = np.concatenate([np.zeros((1, lanes), np.int64), by_row])

    def lane(self, position: int) -> int:
        """The lane of a position."""
        return (position + self._shift) % self._per_step // self._width

    def before(self, position: int) -> NDArray[np.int64]:
        """int64 [lanes]: turns of each lane before a position ≥ 0."""
        periods, row, column = self._split(position)
        turns = periods * self._before[-1] + self._before[row]
        if column:
            lane, inside = divmod(column, self._width)
            turns[:lane] += self._rows[row, :lane].sum(axis=1)
            turns[lane] += self._rows[row, lane, :inside].sum()
        return turns

    def of_lane_before(self, position: int) -> int:
        """Turns that the lane of ``position`` has had before it."""
        periods, row, column = self._split(position)
        lane, inside = divmod(column, self._width)
        turns = periods * int(self._before[-1, lane]) + int(self._before[row, lane])
        return turns + int(self._rows[row, lane, :inside].sum())

    def _split(self, position: int) -> tuple[int, int, int]:
        """(whole periods, row of the table, place in its step) of a position."""
        periods, inside = divmod(position, self._period)
        return periods, *divmod(inside + self._shift, self._per_step)


@dataclass(frozen=True)
class Place:
    """Where in its epoch's row a turn is drawn from."""

    lane: int
    at: int  # sequence of the row
    end: int  # of the stretch that the lane reads without a gap, ``at`` included


class LaneCut:
    """Stretches of an epoch's row, cut among the lanes.

    Args:
        stretches: (start, end) of what is to be read, in the order in which it is dealt.
        turns: int64 [lanes], turns of each until all is read; their sum is the stretches' length.
    """

    def __init__(self, stretches: list[tuple[int, int]], turns: NDArray[np.int64]) -> None:
        lengths = [end - start for start, end in stretches]
        assert sum(lengths) == int(turns.sum())
        self._starts = [start for start, _ in stretches]
        self._ends = np.cumsum(lengths).tolist()
        self._lanes = np.append(0, np.cumsum(turns)).tolist()

    def place(self, lane: int, turn: int) -> Place:
        """Where the lane's ``turn``-th turn, counted from 0, is drawn from."""
        dealt = self._lanes[lane] + turn
        assert dealt < self._lanes[lane + 1], "more turns than the lane was counted to have"
        number = bisect_right(self._ends, dealt)
        shift = self._starts[number] - (self._ends[number - 1] if number else 0)
        return Place(lane, dealt + shift, min(self._ends[number], self._lanes[lane + 1]) + shift)

    def left(self, used: NDArray[np.int64]) -> list[tuple[int, int]]:
        """The stretches that remain when each lane has had so many turns, int64 [lanes]."""
        out = []
        for lane, turn in enumerate(used.tolist()):
            while self._lanes[lane] + turn < self._lanes[lane + 1]:
                place = self.place(lane, turn)
                out.append((place.at, place.end))
                turn += place.end - place.at
        return out
