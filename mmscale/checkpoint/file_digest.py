"""SHA-256 of files, and whether files are what a list of them says."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mmscale.plain_file import open_plain


def file_digest(path: Path) -> str:
    """SHA-256, hexadecimal. Raises `OSError`, also for pipes, devices and folders."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_fault(
    folder: Path, files: dict[str, dict[str, Any]], rank: int = 0, world: int = 1
) -> str | None:
    """The first difference between ``files`` (``bytes``, ``sha256`` by name) and what lies in
    ``folder``, or None.

    Of several ranks each reads its share.
    """
    for name in sorted(files)[rank::world]:
        try:
            if file_digest(folder / name) != files[name]["sha256"]:
                return f"{name} has another SHA-256 than when it was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None
