"""The end of a process in which Gloo's threads may still be at work.

A worker thread of Gloo lets go of a collective's tensors a moment after the collective is done. If
the interpreter is being taken apart by then, asking for its lock aborts the process
(pytorch/pytorch issue 190489): once in a thousand times, and a launcher takes a run that is done,
or that saved and wants to be started again, for one that failed.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress


def end_after(main: Callable[[], object]) -> None:
    """Call ``main``; when all exit handlers are done, end with its exit code without taking the
    interpreter apart.

    For scripts, before they import much: exit handlers run in reverse order, so those registered
    before are left out. An exception ends the process as it always does.
    """
    codes: list[int] = []
    atexit.register(_end, codes)
    try:
        main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            codes.append(end.code or 0)
        raise
    codes.append(0)


def _end(codes: list[int]) -> None:
    if not codes:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            stream.flush()
    os._exit(codes[0])
