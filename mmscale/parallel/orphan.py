"""A rank whose launcher was killed must not go on: its job may have begun again elsewhere, in the same run.dir."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_launcher() -> None:
    """From now on the kernel sends this process SIGTERM, upon which a run saves and ends, when its parent dies.

    Only under a launcher, and on Linux, which alone offers it.
    """
    if "RANK" not in os.environ or not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent:  # it died just before
        os.kill(os.getpid(), signal.SIGTERM)
