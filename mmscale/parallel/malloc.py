"""Memory that a step on CPUs frees stays with the process, for the next step to find."""

from __future__ import annotations

import ctypes

# malloc.h of glibc; see `man 3 mallopt`.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = -1


def keep_heap() -> None:
    """Let glibc take large blocks from its heap, and never shrink that.

    Otherwise it asks the system for every tensor of more than 32 MiB and gives it back when it is
    freed, and the system clears each page anew: a tenth of a training step on CPUs, and twice that
    on virtual machines whose host takes free pages back. The most that a training process holds
    grew by up to 8 % (docs/benchmarks.md), that of a bare chain of equal layers to twice: malloc
    cannot put an aligned block where one of the same size was. Without glibc, or with another
    allocator before it, nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, _NEVER)
