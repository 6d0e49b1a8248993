"""One run or search at a time in a folder: a second start must not write, or clean up, among the
first one's files.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmscale.data.storage.file_lock import try_lock_of_process
from mmscale.durable import make_folder
from mmscale.errors import UserError
from mmscale.messages import report
from mmscale.parallel.ranks import Ranks, on_first_rank
from mmscale.release.release_manifest import NAME as RELEASE_MANIFEST

# A file server keeps the locks of a machine that was lost until its lease ends: 90 s with NFS,
# about 100 with Lustre.
_LEASE_S = 120.0
_POLL_S = 0.5


@contextmanager
def hold_run(folder: Path, ranks: Ranks, patience_s: float = _LEASE_S) -> Iterator[None]:
    """Hold ``folder``, which is made if it is missing, for this run. Called on every rank; the
    first one holds it.

    The system gives the lock back when the process ends, however it ends. On a file system without
    such locks nothing is held.

    Raises:
        UserError: another run still holds it after ``patience_s`` seconds, or the folder cannot be
            made.
    """
    handle = on_first_rank(lambda: _take(folder, patience_s, "run trains"), ranks)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def hold_search(folder: Path, patience_s: float = _LEASE_S) -> Iterator[None]:
    """`hold_run` for the driver of a search, which is one process."""
    handle = _take(folder, patience_s, "search runs")
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _take(folder: Path, patience_s: float, doing: str) -> int | None:
    """The locked file's handle; None: there are no locks here. ``doing``: what another holder does,
    for people.
    """
    if (folder / RELEASE_MANIFEST).exists():
        raise UserError(
            f"run.dir={folder}: is a release, which training in it would spoil; choose another "
            "folder"
        )
    try:
        make_folder(folder)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(
            f"run.dir={folder}: cannot be written to ({error.strerror}); choose another folder"
        ) from None
    began, reported = time.monotonic(), False
    while True:
        try:
            held = try_lock_of_process(handle)
        except OSError:
            os.close(handle)
            return None
        if held:
            with suppress(OSError):  # a full disk: the name is only for people
                os.truncate(handle, 0)
                os.pwrite(handle, f"{socket.gethostname()}, process {os.getpid()}".encode(), 0)
            return handle
        holder = os.pread(handle, 200, 0).decode("utf-8", "replace") or "another process"
        if time.monotonic() - began >= patience_s:
            os.close(handle)
            raise UserError(
                f"run.dir={folder}: another {doing} in it ({holder}); stop that one, or choose "
                "another folder"
            )
        if not reported:
            reported = True
            report(
                f"{folder}: another {doing} in it ({holder}); waiting {patience_s:.0f} s "
                "for it to end"
            )
        time.sleep(_POLL_S)
