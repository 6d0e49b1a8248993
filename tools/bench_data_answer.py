"""What every measured process of `bench_data` does: it answers one request a line. Standard library
only.

First it says what it runs on, then for each request ``{"workers", "warm_up", "samples"}`` how long
that took.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

Amount = tuple[int, float]
"""Samples, and seconds of sound in them."""


def answer(batches: Callable[[int], Iterator[Amount]], packages: list[str]) -> None:
    """Serve requests until standard input ends.

    ``batches(workers)`` is an endless pipeline with so many loader processes (0: this process does
    the work) and gives what each of its batches holds. ``packages``: distributions whose versions
    are told.
    """
    _say({"python": platform.python_version()} | {name: version(name) for name in packages})
    for line in sys.stdin:
        request = json.loads(line)
        _say(_measure(batches(request["workers"]), request["warm_up"], request["samples"]))


def _measure(batches: Iterator[Amount], warm_up: int, samples: int) -> dict[str, float]:
    """Time from the batch that completes ``warm_up`` samples to the one that completes ``samples``
    more.
    """
    seen = 0
    while seen < warm_up:
        seen += next(batches)[0]
    began, done, sound_s = time.perf_counter(), 0, 0.0
    while done < samples:
        count, seconds = next(batches)
        done, sound_s = done + count, sound_s + seconds
    return {"seconds": time.perf_counter() - began, "samples": done, "sound_s": sound_s}


def _say(message: dict[str, str] | dict[str, float]) -> None:
    print(json.dumps(message), flush=True)
