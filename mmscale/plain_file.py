"""Opening a file of a folder that somebody else made: only plain files, and never more of them than
is allowed.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path


def open_plain(path: Path) -> BufferedReader:
    """``path``, or what it links to, for reading. Raises `OSError`, also for pipes, devices and
    folders.
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, "no plain file")
    return file


def read_plain(path: Path, most: int) -> bytes:
    """All of ``path``. Raises `OSError`, or `ValueError` if it has more than ``most`` bytes."""
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"larger than {most >> 20} MiB")
        return file.read(size)


def _without_waiting(path: str, flags: int) -> int:
    """Opening a pipe that nobody writes into would wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK)
