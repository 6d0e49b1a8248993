"""Arrays that follow from an index and take long to make: kept as .npy files and memory-mapped.

They lie in the index folder itself or, where that cannot be written, in the cache folder. Their
names hold a hash of all they depend on, so a file that is found is right; one that is lost costs
time and nothing else. In the cache folder they count within its bound.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.data.fetching.cache_room import CacheRoom
from mmscale.data.index.dataset import Dataset

_HEADER_BYTES = 4096


class CachedArray:
    """A derived array. Where it lies in a file, it is pickled as the file's name and mapped
    again.
    """

    def __init__(self, array: NDArray[Any], path: Path | None = None) -> None:
        self.array, self._path = array, path

    def __reduce__(self) -> tuple[Any, ...]:
        return (CachedArray, (self.array,)) if self._path is None else (_map, (self._path,))


class ArrayCache:
    """Derived arrays of one data set.

    Args:
        folders: where they may lie, the preferred first.
        room: of the cache folder, in which some of ``folders`` may lie.
    """

    def __init__(self, folders: list[Path], room: CacheRoom | None = None) -> None:
        self._folders, self._room = folders, room

    @classmethod
    def beside(cls, dataset: Dataset) -> ArrayCache:
        """In the index folder of ``dataset``, else in the cache folder."""
        folders = [dataset.manifests[0].root / "index", dataset.cache.folder() / "derived"]
        return cls(folders, CacheRoom(dataset.cache))

    @staticmethod
    def name(kind: str, *parts: str) -> str:
        """A file name from what the array is and everything it depends on."""
        return f"{kind}.{hashlib.sha256(chr(31).join(parts).encode()).hexdigest()[:24]}.npy"

    def load(self, name: str, dtype: Any, length: int) -> CachedArray | None:
        """The array [length], memory-mapped; None if it is not there or damaged."""
        for folder in self._folders:
            try:
                cached = _map(folder / name)
            except (OSError, ValueError, EOFError):
                continue
            if cached.array.shape == (length,) and cached.array.dtype == np.dtype(dtype):
                return cached
        return None

    def save(self, name: str, array: NDArray[Any]) -> CachedArray:
        """Write the array where that is possible; returns it, memory-mapped if it was written."""
        for folder in self._folders:
            temporary = folder / f".{name}.{os.getpid()}.tmp"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                room = self._room_in(folder)
                with open(temporary, "wb") as file:
                    if room is not None:
                        fcntl.flock(file, fcntl.LOCK_EX)  # else taken for a dead process's
                        room.claim(file.fileno(), array.nbytes + _HEADER_BYTES, f"the array {name}")
                    np.save(file, array)
                    file.truncate()
                    (room.rename if room else os.replace)(temporary, folder / name)
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                continue
            cached = self.load(name, array.dtype, len(array))
            if cached is not None:
                return cached
        return CachedArray(array)  # nowhere to keep it: the next start makes it again

    def _room_in(self, folder: Path) -> CacheRoom | None:
        """The room of the cache folder, if ``folder`` lies in it."""
        inside = self._room is not None and folder.is_relative_to(self._room.folder)
        return self._room if inside else None


def _map(path: Path) -> CachedArray:
    return CachedArray(np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray), path)
