"""The trackers of a run: they get copies of what metrics.jsonl has, and can never stop the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from mmscale.config import RunConfig
from mmscale.messages import warn
from mmscale.registry import TRACKERS


class RunTracker(Protocol):
    """A kind of tracker is a class without arguments. The first rank of a run makes an instance."""

    def open(self, folder: Path, start: int) -> None:
        """Called once: ``folder`` is run.dir, ``start`` the step that the run begins or resumes
        at.
        """

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step by name, such as ``loss`` or ``losses/next_token``."""

    def close(self) -> None:
        """Called once, at the end."""


class Trackers:
    """All trackers that a run's config names.

    One that raises is reported on stderr, once, and left out from then on. Its errors may be of any
    kind, because a third party's library raises them.
    """

    def __init__(self, config: RunConfig, start: int) -> None:
        names = [*(["tensorboard"] if config.tensorboard else []), *config.trackers]
        self._open: dict[str, RunTracker] = {name: TRACKERS[name]() for name in names}
        self._each(lambda tracker: tracker.open(Path(config.dir), start))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Hand a step's numbers on."""
        self._each(lambda tracker: tracker.scalars(step, values))

    def close(self) -> None:
        """Close all that still work."""
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[RunTracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                act(tracker)
            except Exception as error:
                del self._open[name]
                reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
                warn(f"tracker {name}: gets nothing more ({reason})")
