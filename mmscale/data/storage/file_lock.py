"""Locks between processes, as advisory locks of the kernel on files: released with the process,
however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, create: bool = True) -> Iterator[int]:
    """Wait for the lock of ``path`` and hold it; gives a descriptor of it.

    The file is made if it is missing, or, without ``create``, `FileNotFoundError` is raised.
    Whoever held the lock before may have renamed or removed the file: see `is_at`.
    """
    handle = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool:
    """Whether nobody held the lock of the open file ``handle``, and it is held now until that is
    closed.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def try_lock_of_process(handle: int) -> bool:
    """`try_lock` of this process instead of the open file: what it forks does not have the lock
    (``man 2 fcntl``).

    It is given back when any descriptor of the file is closed, so the file is opened once. Raises
    `OSError` where the file system has no such locks.
    """
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def is_at(path: Path, handle: int) -> bool:
    """Whether ``path`` still names the open file ``handle``."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
