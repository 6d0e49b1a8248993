"""How far ahead to fetch: by time, so that it hides what was measured of the source."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

# The longest wait for one block counts for so many seconds, and is covered so many times.
_REMEMBERED_S, _COVERED = 600.0, 3.0
# Of the time of a step: the weight of the newest.
_WEIGHT = 0.2
# Before a step was timed.
_FIRST_STEPS = 4


class Depth:
    """Steps to look ahead.

    Args:
        ahead_s: seconds of steps that are fetched ahead at the least.
        clock: seconds; for tests.
    """

    def __init__(self, ahead_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._ahead_s, self._clock = ahead_s, clock
        self._step_s = math.nan
        self._seen: tuple[int, float] | None = None
        self._waits: deque[tuple[float, float]] = deque()

    @property
    def step_s(self) -> float:
        """Seconds of a step; nan before one was timed."""
        return self._step_s

    @property
    def seconds(self) -> float:
        """Seconds of steps to fetch ahead."""
        while self._waits and self._waits[0][0] < self._clock() - _REMEMBERED_S:
            self._waits.popleft()
        longest = max((wait for _, wait in self._waits), default=0.0)
        return max(self._ahead_s, _COVERED * longest)

    @property
    def steps(self) -> int:
        """The same in steps, at least one."""
        if math.isnan(self._step_s) or self._step_s <= 0:
            return _FIRST_STEPS
        return max(1, math.ceil(self.seconds / self._step_s))

    def progressed(self, step: int) -> None:
        """All ranks are at ``step`` now."""
        now = self._clock()
        if self._seen is not None and step > self._seen[0]:
            each = (now - self._seen[1]) / (step - self._seen[0])
            old = each if math.isnan(self._step_s) else self._step_s
            self._step_s = old + _WEIGHT * (each - old)
        if self._seen is None or step > self._seen[0]:
            self._seen = step, now

    def waited(self, seconds: float) -> None:
        """One block took so long to come."""
        # Only what is longer than all after it can ever be the longest.
        while self._waits and self._waits[-1][1] <= seconds:
            self._waits.pop()
        self._waits.append((self._clock(), seconds))
