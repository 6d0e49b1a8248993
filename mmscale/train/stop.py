"""A request to stop: save, and leave with a code by which launchers know to start the run again.

SIGTERM and SIGUSR1 come before a preemption or a time limit, SIGINT from the keyboard. The wish
travels with the sums of a step, so that every rank stops after the same one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

# What `mmscale train` ends with after it saved: EX_TEMPFAIL, "start me again".
SAVED = 75
INTERRUPTED = 130  # by the keyboard, after it saved too
_WISHES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: SAVED, signal.SIGUSR1: SAVED}


class StopSignal:
    """Listens while a run trains; a context manager.

    Args:
        grace_s: seconds from the first signal until the process ends all the same.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._before: dict[int, object] = {}
        self._timer: threading.Timer | None = None
        self.code = 0  # 0: continue

    def __enter__(self) -> StopSignal:
        # Elsewhere than in the main thread Python takes no signals: a tuner's worker is stopped by
        # its driver.
        if threading.current_thread() is threading.main_thread():
            for number in _WISHES:
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._timer is not None:
            self._timer.cancel()

    def _heard(self, number: int, frame: FrameType | None) -> None:
        """Launchers send a signal twice, or another after it: only the first counts, a second
        SIGINT excepted.
        """
        if self.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.code:
            return
        self.code = _WISHES[signal.Signals(number)]
        self._timer = threading.Timer(self._grace_s, self._too_late, [signal.Signals(number).name])
        self._timer.daemon = True
        self._timer.start()

    def _too_late(self, name: str) -> None:
        line = (
            f"mmscale: error: {name}: not saved within train.grace_s={self._grace_s:g}; "
            "the last checkpoint stands\n"
        )
        os.write(sys.stderr.fileno(), line.encode())
        os._exit(1)
