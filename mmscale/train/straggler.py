"""Which rank is slow: every rank's work and wait of each step, on all of them."""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections import deque

import torch.distributed as dist

from mmscale.messages import warn
from mmscale.parallel.ranks import Ranks

_WINDOW = 20  # steps
_SLOW = 1.5  # times the median of the ranks
_LEAST_S = 0.01  # a difference that matters


class RankTimes:
    """Measures this rank; watches all, once their numbers have been summed.

    Work is processor time of the process and its threads, so that a rank that waits for others does
    not look busy. How long a GPU works is not in it: ``train.profile_steps`` shows that.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._clock = time.process_time()
        self._work: list[deque[float]] = [deque(maxlen=_WINDOW) for _ in range(ranks.world)]
        self._wait: list[deque[float]] = [deque(maxlen=_WINDOW) for _ in range(ranks.world)]
        self._quiet = 0  # steps until the next warning
        hosts: list[str] = [""] * ranks.world
        dist.all_gather_object(hosts, f"{socket.gethostname()}, process {os.getpid()}")
        self._hosts = hosts

    def own(self, wait: float) -> tuple[list[float], list[float]]:
        """Work and wait of this rank's step that just ended, each [ranks]: in a place of its own
        among zeros.
        """
        now = time.process_time()
        work_s, wait_s = [0.0] * self._ranks.world, [0.0] * self._ranks.world
        work_s[self._ranks.rank], wait_s[self._ranks.rank] = now - self._clock, wait
        self._clock = now
        return work_s, wait_s

    def watch(self, step: int, work_s: list[float], wait_s: list[float]) -> None:
        """Take in every rank's work and wait for data; warn of a rank that is slow for long."""
        if not self._ranks.is_first or self._ranks.world == 1:
            return
        for rank in range(self._ranks.world):
            self._work[rank].append(work_s[rank])
            self._wait[rank].append(wait_s[rank])
        self._quiet -= 1
        if len(self._work[0]) == _WINDOW and self._quiet < 0:
            for name, of_ranks in (("works", self._work), ("waits for data", self._wait)):
                self._warn(step, name, [statistics.fmean(seconds) for seconds in of_ranks])

    def _warn(self, step: int, name: str, means: list[float]) -> None:
        slowest = max(range(len(means)), key=means.__getitem__)
        usual = statistics.median_low(means)
        if means[slowest] > max(_SLOW * usual, usual + _LEAST_S):
            self._quiet = 10 * _WINDOW
            warn(
                f"step {step}: rank {slowest} ({self._hosts[slowest]}) {name} {means[slowest]:.3f} "
                f"s per step, the median rank {usual:.3f} s; all wait for it"
            )
