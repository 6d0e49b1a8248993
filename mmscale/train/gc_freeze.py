"""Python's garbage collector in a loop that runs for weeks."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Within, the collector passes over all that exists now: modules, model, plan.

    To look through those takes a sixth of a second per rank, each time that enough new objects have
    gathered, and the other ranks wait meanwhile. Nothing of them becomes garbage while the loop
    runs (`gc.freeze`, Python 3.7).
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
