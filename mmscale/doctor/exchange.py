"""What ranks report to each other before there is a process group, through the store by which they
met.

A rank that hangs or is unreachable does not take the others with it. It is the one whose report is
missing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch.distributed as dist


class Exchange:
    """Topics in a store. Every rank reports its own value; the first rank also announces to all.

    Args:
        store: see `mmscale.parallel.ranks.meet_ranks`.
        patience_s: how long to wait for another rank's report, seconds.
    """

    def __init__(self, store: dist.Store, rank: int, world: int, patience_s: float) -> None:
        self._store, self.rank, self.world = dist.PrefixStore("doctor", store), rank, world
        self.patience = timedelta(seconds=patience_s)

    def report(self, topic: str, value: Any) -> None:
        """Set this rank's value, anything that JSON holds."""
        self._store.set(f"{topic}/{self.rank}", json.dumps(value))

    def gather(self, topic: str, ranks: Iterable[int]) -> dict[int, Any]:
        """The values of those of ``ranks`` that report theirs within the patience."""
        keys = {rank: f"{topic}/{rank}" for rank in ranks}
        with contextlib.suppress(RuntimeError):  # time is up
            self._store.wait(list(keys.values()), self.patience)
        return {rank: self._read(key) for rank, key in keys.items() if self._store.check([key])}

    def now(self, topic: str, rank: int) -> Any:
        """What a rank reported last, or None."""
        key = f"{topic}/{rank}"
        return self._read(key) if self._store.check([key]) else None

    def announce(self, topic: str, value: Any) -> None:
        """Set the first rank's value for all."""
        self._store.set(topic, json.dumps(value))

    def listen(self, topic: str) -> Any:
        """What the first rank announces. It may itself wait for others, a few times over.

        Raises:
            RuntimeError: nothing came.
        """
        self._store.wait([topic], 4 * self.patience)
        return self._read(topic)

    def below(self, name: str) -> dist.Store:
        """A part of the store for something else."""
        return dist.PrefixStore(name, self._store)

    def _read(self, key: str) -> Any:
        return json.loads(self._store.get(key))
