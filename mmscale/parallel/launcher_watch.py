"""A rank ends when its launcher does: a killed launcher must not leave ranks behind that write into
the run's folder.

torchrun, accelerate and deepspeed end their ranks when they are asked to stop, not when they are
killed. Ray's workers look for its daemon now and then and end in good order, which on a busy
machine has taken more than a minute. The kernel's parent-death signal is no help: it is sent when
the *thread* ends that started the process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import threading

_LAUNCHED = ("TORCHELASTIC_RUN_ID", "LOCAL_SIZE")  # torchrun and accelerate; deepspeed
_LOST = 1


def end_with_launcher() -> None:
    """Watch the parent process, if it is a launcher; called first thing, without imports that take
    time.
    """
    if any(name in os.environ for name in _LAUNCHED):
        end_with_parent()


@functools.cache  # Ray gives a worker one trial after the other
def end_with_parent() -> None:
    """End this process, without a word to anybody, when the process that started it ends. Does
    nothing but on Linux.
    """
    if not hasattr(os, "pidfd_open"):
        return
    parent = os.getppid()
    try:
        handle = os.pidfd_open(parent)
    except OSError:
        return  # an old kernel; or it is gone, and the ranks cannot meet
    threading.Thread(target=_wait, args=(handle,), name="launcher watch", daemon=True).start()
    if os.getppid() != parent:
        _end()


def _wait(handle: int) -> None:
    with contextlib.suppress(OSError):
        select.select([handle], [], [])
        _end()


def _end() -> None:
    with contextlib.suppress(OSError):
        os.write(
            2,
            b"mmscale: error: the launcher is gone; this rank ends, "
            b"and the last checkpoint stands\n",
        )
    os._exit(_LOST)
