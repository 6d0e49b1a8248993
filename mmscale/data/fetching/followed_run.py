"""Waiting for what a run fetches ahead, instead of fetching it out of turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mmscale.data.fetching.run_folders import given_up_file, is_alive

Found = TypeVar("Found")

# For the process to begin; once.
_BEGINS_S = 10.0
# The process lives and does not bring what it was to bring: it is fetched here.
_PATIENCE_S = 300.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.02
_LOOK_S = 0.5  # between looks whether the process lives


class FollowedRun:
    """The run of ``folder``, as one of its readers sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._begun = False
        self._over = False
        self._doubted: set[str] = set()

    def doubt(self, name: str) -> None:
        """The run takes the extent for whole, which it is not: do not wait for it."""
        self._doubted.add(name)

    def wait_for(self, name: Callable[[], str], find: Callable[[], Found | None]) -> Found | None:
        """What ``find`` gives as soon as it does; None: the run will not bring that extent.

        Args:
            name: of the extent as it can be had now: the run may learn meanwhile that its server
                gives whole shards alone.
            find: looks for it on the disk.
        """
        began = looked = time.monotonic()
        pause = _FIRST_PAUSE_S
        while not self._over and name() not in self._doubted:
            found = find()
            if found is not None:
                return found
            now = time.monotonic()
            if now - looked > _LOOK_S or not self._begun:
                looked = now
                self._look(now - began)
            if given_up_file(self.folder, name()).exists() or now - began > _PATIENCE_S:
                return None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        return None

    def _look(self, waited_s: float) -> None:
        alive = is_alive(self.folder)
        self._begun = self._begun or alive
        self._over = not alive and (self._begun or waited_s > _BEGINS_S)
