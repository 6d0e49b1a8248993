"""Which servers know no ranges, remembered in the cache folder for all processes of the machine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mmscale.data.fetching.extent import Extent
from mmscale.messages import report

_FOLDER = "whole"


class ServerRanges:
    """Extents as their servers can give them. Picklable.

    Args:
        cache: the cache folder.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._files: dict[str, str] = {}  # by base: which each read asks for

    def attainable(self, extent: Extent) -> Extent:
        """``extent``, or its whole shard where the server gives nothing less."""
        return extent.whole() if os.path.exists(self._file(extent.base)) else extent

    def deny(self, base: str) -> None:
        """Remember that the server of the remote folder ``base`` knows no ranges; said once."""
        file = self._file(base)
        os.makedirs(os.path.dirname(file), exist_ok=True)
        try:
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            return
        report(
            f"{base}: the server knows no ranges, so each shard is fetched whole; should it learn "
            f"them, remove {file}"
        )

    def _file(self, base: str) -> str:
        if base not in self._files:
            name = hashlib.sha256(base.encode()).hexdigest()[:32]
            self._files[base] = str(self._cache / _FOLDER / name)
        return self._files[base]
