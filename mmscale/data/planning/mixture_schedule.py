"""The mixture over a whole run: weights that change at steps, caps on repeats, shards that were
exchanged.

A run is cut into *phases* of constant weights. A phase begins where the config changes weights, and
where a set has been repeated as often as it may be. Within a phase everything is `Mixture`'s closed
form; the few phases are found once, by arithmetic. What is added for later steps cannot change an
earlier phase.

An *edition* is what a set held from some position on. Exchanging a set's shards begins an edition,
and with it an epoch; epochs continue to count, so that nothing random is drawn twice.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmscale.data.planning.bounded_cache import BoundedCache
from mmscale.data.planning.lanes import LaneCut, LaneTurns, Place
from mmscale.data.planning.mixture import Mixture

_CACHED_CUTS = 64


@dataclass(frozen=True)
class Change:
    """From ``position`` on: other weights, or another edition of some sets."""

    position: int
    weights: dict[str, float]
    sequences_per_epoch: dict[str, int]


@dataclass(frozen=True)
class Slot:
    """What fills one position."""

    set_index: int
    current: bool  # whether it is of the set's last edition, the one that is at hand
    epoch: int  # of the set, over all its editions
    inside: int  # turn of that epoch


@dataclass(frozen=True)
class _EditionSpan:
    first_turn: int
    first_epoch: int
    per_epoch: int

    def epochs_at(self, turn: int) -> float:
        return self.first_epoch + (turn - self.first_turn) / self.per_epoch


@dataclass(frozen=True)
class _Phase:
    start: int
    mixture: Mixture
    turns: NDArray[np.int64]  # [sets], before it starts


@dataclass(frozen=True)
class _PhaseCut:
    """What the lanes read of one epoch from its first turn in a phase on."""

    cut: LaneCut
    counter: LaneTurns
    begun: NDArray[np.int64]  # [lanes], turns in the phase before that one


class MixtureSchedule:
    """Which set, epoch and sequence stand at every position.

    Args:
        names: the sets, in the config's order. changes: in order of position; the first is at 0 and
        gives every set its weight and its sequences. max_epochs: how often each set may be
        repeated; 0: without end. per_step: positions of a step. lanes: of every set, each a divisor
        of ``per_step``; none given: one.

    Attributes:
        end: positions there are; None without end (some set may be repeated for ever).

    Raises:
        UserError: a weight that would round to nothing.
    """

    def __init__(
        self,
        names: list[str],
        changes: list[Change],
        max_epochs: list[int],
        *,
        per_step: int = 1,
        lanes: list[int] | None = None,
    ) -> None:
        assert changes and changes[0].position == 0
        self._names, self._max_epochs, self._per_step = names, max_epochs, per_step
        self._lanes = lanes or [1] * len(names)
        self._cuts: BoundedCache[_PhaseCut] = BoundedCache(_CACHED_CUTS)
        self._counters: BoundedCache[LaneTurns] = BoundedCache(_CACHED_CUTS)
        self._editions: list[list[_EditionSpan]] = [[] for _ in names]
        self._phases: list[_Phase] = []
        self.end: int | None = None
        weights, turns = dict.fromkeys(names, 0.0), np.zeros(len(names), np.int64)
        for number, change in enumerate(changes):
            weights |= change.weights
            for name, per_epoch in change.sequences_per_epoch.items():
                self._begin_edition(names.index(name), int(turns[names.index(name)]), per_epoch)
            stop = changes[number + 1].position if number + 1 < len(changes) else None
            turns = self._lay_phases(change.position, stop, weights, turns)
            if self.end is not None:
                break  # with nothing left to draw from, no later change is reached
        self._starts = [phase.start for phase in self._phases]

    def turn(self, position: int) -> Slot:
        """What fills a position ≥ 0, which must lie before `end`."""
        assert self.end is None or position < self.end, "the data ended before this position"
        phase = self._phases[bisect.bisect_right(self._starts, position) - 1]
        owner, turn = phase.mixture.turn(position - phase.start)
        turn += int(phase.turns[owner])
        number = (
            bisect.bisect_right([edition.first_turn for edition in self._editions[owner]], turn) - 1
        )
        edition = self._editions[owner][number]
        epoch, inside = divmod(turn - edition.first_turn, edition.per_epoch)
        return Slot(
            owner, number == len(self._editions[owner]) - 1, edition.first_epoch + epoch, inside
        )

    def place(self, position: int) -> Place:
        """Where in the row of its epoch a position of a set's last edition is drawn from."""
        number = bisect.bisect_right(self._starts, position) - 1
        inside = position - self._phases[number].start
        owner, turn = self._phases[number].mixture.turn(inside)
        edition = self._editions[owner][-1]
        turn += int(self._phases[number].turns[owner]) - edition.first_turn
        assert turn >= 0, "a position of an edition that was exchanged"
        first = edition.first_turn + turn // edition.per_epoch * edition.per_epoch
        of_epoch = self._cut(owner, first, number)
        lane = of_epoch.counter.lane(inside)
        return of_epoch.cut.place(
            lane, of_epoch.counter.of_lane_before(inside) - int(of_epoch.begun[lane])
        )

    def epochs_before(self, position: int) -> list[float]:
        """How many epochs of each set lie before a position ≥ 0."""
        position = position if self.end is None else min(position, self.end)
        phase = self._phases[max(0, bisect.bisect_right(self._starts, position) - 1)]
        turns = (phase.turns + phase.mixture.turns_before(position - phase.start)).tolist()
        numbers = [
            bisect.bisect_right([edition.first_turn for edition in editions], turn) - 1
            for editions, turn in zip(self._editions, turns, strict=True)
        ]
        return [
            editions[number].epochs_at(turn)
            for editions, number, turn in zip(self._editions, numbers, turns, strict=True)
        ]

    def facts(self, position: int) -> list[tuple[int, dict[str, int]]]:
        """All phases that begin before ``position``: start, and the share of every set that has
        one.
        """
        return [
            (
                phase.start,
                {
                    n: s
                    for n, s in zip(self._names, phase.mixture.shares.tolist(), strict=True)
                    if s
                },
            )
            for phase in self._phases
            if phase.start < position
        ]

    def _cut(self, owner: int, first: int, number: int) -> _PhaseCut:
        return self._cuts.recall(
            (owner, first, number), lambda: self._make_cut(owner, first, number)
        )

    def _make_cut(self, owner: int, first: int, number: int) -> _PhaseCut:
        """The cut of the last edition's epoch that begins with the set's turn ``first``, as it is
        read in phase ``number``. It depends on no later phase.
        """
        phase = self._phases[number]
        done, left = int(phase.turns[owner]), self._editions[owner][-1].per_epoch
        start, stretches = max(0, first - done), [(0, left)]  # in turns of the phase
        if done > first:
            before = number - 1
            while self._phases[before].turns[owner] == done:
                before -= 1  # the set had no turn there
            earlier, ended = self._phases[before], self._phases[before + 1].start
            cut = self._cut(owner, first, before)
            stretches = cut.cut.left(cut.counter.before(ended - earlier.start) - cut.begun)
            left -= done - first
        counter = self._counters.recall((owner, number), lambda: self._make_counter(owner, number))
        mixture = phase.mixture
        begun = counter.before(mixture.position_after(owner, start + 1) - 1)
        ends = counter.before(mixture.position_after(owner, start + left))
        return _PhaseCut(LaneCut(stretches, ends - begun), counter, begun)

    def _make_counter(self, owner: int, number: int) -> LaneTurns:
        phase = self._phases[number]
        return LaneTurns(
            phase.mixture.owned(owner), self._per_step, self._lanes[owner],
            shift=phase.start % self._per_step,
        )  # fmt: skip

    def _begin_edition(self, owner: int, turn: int, per_epoch: int) -> None:
        editions = self._editions[owner]
        if editions and editions[-1].first_turn == turn:
            # Nothing was drawn from the one before.
            first = editions.pop().first_epoch
        else:
            first = int(np.ceil(editions[-1].epochs_at(turn))) if editions else 0
        editions.append(_EditionSpan(turn, first, per_epoch))

    def _turns_left(self, owner: int, turns: int) -> int | None:
        """How many more turns a set may have; None: any number."""
        if not self._max_epochs[owner]:
            return None
        edition = self._editions[owner][-1]
        last = (
            edition.first_turn
            + max(0, self._max_epochs[owner] - edition.first_epoch) * edition.per_epoch
        )
        return max(0, last - turns)

    def _lay_phases(
        self, start: int, stop: int | None, weights: dict[str, float], turns: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Phases from ``start`` until ``stop``; returns every set's turns at its end."""
        while stop is None or start < stop:
            left = [self._turns_left(owner, int(turns[owner])) for owner in range(len(self._names))]
            active = [
                0.0 if more == 0 else weights[n] for n, more in zip(self._names, left, strict=True)
            ]
            if not any(active):
                self.end = start
                break
            mixture = Mixture(self._names, active, self._per_step)
            self._phases.append(_Phase(start, mixture, turns))
            ends = [
                start + mixture.position_after(owner, more)
                for owner, more in enumerate(left)
                if more and active[owner]
            ]
            ends += [stop] if stop is not None else []
            if not ends:
                break
            turns = turns + mixture.turns_before(min(ends) - start)
            start = min(ends)
        return turns
