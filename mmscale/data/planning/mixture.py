"""Which data set fills which sequence: a closed-form integer schedule over positions.

Weights are rounded to shares of a period of about `PERIOD` positions, whole steps. Inside a period
the turns of each set are spread evenly, and of turns that fall together the set whose
name sorts first goes first, wherever
the config has it; how many turns a set has had before any position is then a multiplication and a
table look-up.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmscale.errors import UserError

PERIOD = 4096
VERSION = 3  # raised with every change of which set has which turn


class Mixture:
    """A schedule of data sets by constant weights.

    Args:
        names: the sets, in the order by which `turn` numbers them; it decides nothing. weights:
        non-negative, not all zero; a positive weight below 1/period of the sum is an error,
            because it would round to nothing.
        per_step: positions of a step; the period is a multiple of it.
    """

    def __init__(self, names: list[str], weights: list[float], per_step: int = 1) -> None:
        total = sum(weights)
        self.period = -(-PERIOD // per_step) * per_step
        exact = np.array(weights, dtype=np.float64) / total * self.period
        shares = np.floor(exact).astype(np.int64)
        by_name = np.array(sorted(range(len(names)), key=names.__getitem__))
        # Largest remainders first.
        falling = by_name[np.argsort(-(exact - shares)[by_name], kind="stable")]
        shares[falling[: self.period - int(shares.sum())]] += 1
        for name, weight, share in zip(names, weights, shares, strict=True):
            if weight > 0 and share == 0:
                raise UserError(
                    f"data.sets.{name}.weight: {weight:g} is below 1/{self.period} of the sum; "
                    "raise it or set 0"
                )
        self.shares: NDArray[np.int64] = shares
        stamps = np.concatenate(
            [(np.arange(shares[owner]) + 0.5) / max(1, shares[owner]) for owner in by_name]
        )
        owners = np.repeat(by_name, shares[by_name])
        self._table: NDArray[np.int64] = owners[np.argsort(stamps, kind="stable")]
        hot = self._table[:, None] == np.arange(len(names))
        self._before = np.concatenate([np.zeros((1, len(names)), np.int64), np.cumsum(hot, axis=0)])

    def turn(self, position: int) -> tuple[int, int]:
        """(index of the data set, number of its earlier turns) for a position ≥ 0."""
        period, inside = divmod(position, self.period)
        owner = int(self._table[inside])
        return owner, period * int(self.shares[owner]) + int(self._before[inside, owner])

    def turns_before(self, position: int) -> NDArray[np.int64]:
        """int64 [sets]: turns each set has had before a position ≥ 0."""
        period, inside = divmod(position, self.period)
        return period * self.shares + self._before[inside]

    def position_after(self, owner: int, turns: int) -> int:
        """The first position before which the set has had ``turns`` ≥ 1 turns; it must have a
        share.
        """
        period, inside = divmod(turns - 1, int(self.shares[owner]))
        return period * self.period + int(np.searchsorted(self._before[:, owner], inside + 1))

    def owned(self, owner: int) -> NDArray[np.bool_]:
        """bool [period]: which positions of a period are the set's."""
        return self._table == owner
