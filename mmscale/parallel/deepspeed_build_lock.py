"""Locks of compilations that were killed.

DeepSpeed compiles an extension when it is first used on CPUs, through
`torch.utils.cpp_extension.load`, which waits for another process's lock file without end. A process
that was killed leaves it.
"""

from __future__ import annotations

import time
from pathlib import Path

from torch.utils.cpp_extension import _get_build_directory

from mmscale.messages import report

_BUILDS_S = 600.0  # longer than any compilation takes
_POLL_S = 0.5


def clear_stale_lock(extension: str, reports: bool) -> None:
    """Wait for another process that compiles ``extension``; remove its lock when it cannot be at
    work any more.
    """
    lock = Path(_get_build_directory(extension, verbose=False)) / "lock"
    reported = not reports
    while True:
        try:
            age = time.time() - lock.stat().st_mtime
        except FileNotFoundError:
            return
        if age > _BUILDS_S:
            lock.unlink(missing_ok=True)
            return
        if not reported:
            reported = True
            report(
                f"another process compiles {extension} ({lock}); if it was killed, remove that "
                f"file, which happens by itself in {(_BUILDS_S - age) / 60:.0f} min"
            )
        time.sleep(_POLL_S)
