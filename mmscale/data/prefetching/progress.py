"""How far the ranks of a machine are: a number each, in a file they share with the fetcher."""

from __future__ import annotations

import os
import struct
from pathlib import Path

_NUMBER = struct.Struct("<q")


def make_progress(path: Path, ranks: int, start: int) -> None:
    """A file for so many ranks, all of which begin at step ``start``."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(_NUMBER.pack(start - 1) * ranks)
    temporary.replace(path)


def read_progress(path: Path) -> int:
    """The last step whose batches every rank has."""
    return min(number for (number,) in _NUMBER.iter_unpack(path.read_bytes()))


class RankProgress:
    """One rank's place in the file, which appears when the fetcher has begun."""

    def __init__(self, path: Path, local_rank: int) -> None:
        self._path, self._at = path, local_rank * _NUMBER.size
        self._handle = -1

    def tell(self, step: int) -> None:
        """This rank has its batches of ``step`` and of all before."""
        if self._handle < 0:
            try:
                self._handle = os.open(self._path, os.O_WRONLY)
            except FileNotFoundError:
                return  # a later step will tell
        os.pwrite(self._handle, _NUMBER.pack(step), self._at)

    def close(self) -> None:
        """Tell nothing more."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
