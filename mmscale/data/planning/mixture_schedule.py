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

from mmscale.data.planning.mixture import Mixture


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
    inside: int  # sequence of that epoch


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


class MixtureSchedule:
    """Which set, epoch and sequence stand at every position.

    Args:
        names: the sets, in the config's order. changes: in order of position; the first is at 0 and
        gives every set its weight and its sequences. max_epochs: how often each set may be
        repeated; 0: without end.

    Attributes:
        end: positions there are; None without end (some set may be repeated for ever).

    Raises:
        UserError: a weight that would round to nothing.
    """

    def __init__(self, names: list[str], changes: list[Change], max_epochs: list[int]) -> None:
        assert changes and changes[0].position == 0
        self._names, self._max_epochs = names, max_epochs
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
            mixture = Mixture(self._names, active)
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
