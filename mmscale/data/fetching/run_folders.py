"""What runs say of themselves in the cache folder: that they live, and which extents they need.

``runs/<id>/lock`` is locked by a process of the run as long as it lives; ``runs/<id>/pins/`` has an
empty file for each extent that the run still needs; ``runs/<id>/given-up/`` one for each that it
could not fetch. All of this is done under the ledger's lock, but for the last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mmscale.data.storage.file_lock import try_lock

RUNS = "runs"
_LOCK, _PINS, _GIVEN_UP = "lock", "pins", "given-up"


def make_run_folder(cache: Path, run: str) -> tuple[Path, int]:
    """(folder, descriptor of its lock, held until it is closed); what a dead run left is removed.

    Who calls makes sure that no two living processes give the same ``run``.
    """
    folder = cache / RUNS / run
    assert not is_alive(folder), f"{folder} belongs to a living run"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / _PINS).mkdir(parents=True)
    (folder / _GIVEN_UP).mkdir()
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    taken = try_lock(lock)
    assert taken
    return folder, lock


def remove_run_folder(folder: Path, lock: int) -> None:
    """End a run: its folder goes first, so that nobody takes it for a dead one."""
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def pin_file(folder: Path, name: str) -> Path:
    """The file by which the run of ``folder`` says that it needs the extent of that name."""
    return folder / _PINS / name


def given_up_file(folder: Path, name: str) -> Path:
    """The file by which the run of ``folder`` says that it could not fetch that extent."""
    return folder / _GIVEN_UP / name


def pinned_names(cache: Path) -> set[str]:
    """Names of the extents that a living run needs."""
    names = set[str]()
    for folder in _runs(cache):
        if is_alive(folder):
            names.update(os.listdir(folder / _PINS))
    return names


def remove_dead_runs(cache: Path) -> None:
    """Remove the folders of runs whose process has ended."""
    for folder in _runs(cache):
        if not is_alive(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(cache: Path) -> Iterator[Path]:
    try:
        yield from (cache / RUNS).iterdir()
    except FileNotFoundError:
        return


def is_alive(folder: Path) -> bool:
    """Whether the process of the run lives."""
    try:
        handle = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        return not try_lock(handle)
    finally:
        os.close(handle)
