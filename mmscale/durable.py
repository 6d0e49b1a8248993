"""Files and folders that are there whole or not at all, whenever a process is killed or the power
fails.

A name in a folder is safe once the folder itself has been flushed (``man 2 fsync``); contents once
the file has. So: write under another name, flush the file, rename, flush the folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path


def write_durably(path: Path, text: str) -> None:
    """Put ``text`` into ``path``; who reads it finds all of the old or all of the new.

    One process writes a path at a time. What a killed one leaves, ``.<name>.tmp``, is overwritten
    by the next.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Make ``path`` and the folders above it, where they are missing, so that they outlive a power
    failure.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def move_into_place(folder: Path, final: Path) -> None:
    """Rename a folder whose files have been flushed; what stood at ``final`` is removed."""
    sync_folder(folder)
    if final.exists():
        remove_folder(final)
    os.rename(folder, final)
    sync_folder(final.parent)


def replace_folder(folder: Path, final: Path) -> None:
    """Flush a folder of plain files and put it in the place of ``final``, which stays whole until
    then.

    It stays as ``.<name>.old`` while it is exchanged; should the process be killed in that moment,
    and ``final`` be missing, `restore_folder` puts it back.
    """
    for path in folder.iterdir():
        _sync(path)
    sync_folder(folder)
    restore_folder(final)
    if not final.exists():
        os.rename(folder, final)
    else:
        old = _old_name(final)
        if old.exists():
            remove_folder(old)
        os.rename(final, old)
        try:
            os.rename(folder, final)
        except OSError:
            os.rename(old, final)
            raise
    sync_folder(folder.parent)
    sync_folder(final.parent)
    if _old_name(final).exists():
        with contextlib.suppress(OSError):  # the next time, then
            remove_folder(_old_name(final))


def restore_folder(final: Path) -> None:
    """Put back what a killed `replace_folder` took away, if ``final`` is missing."""
    if not final.exists() and _old_name(final).exists():
        os.rename(_old_name(final), final)
        sync_folder(final.parent)


def remove_folder(folder: Path) -> None:
    """Remove ``folder`` under another name, ``.<name>.gone``, so that it never stands there by
    half.
    """
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(folder, gone)
    sync_folder(folder.parent)
    shutil.rmtree(gone, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to the disk."""
    _sync(folder)


def _old_name(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
