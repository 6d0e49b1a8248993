"""The files of a folder and of those in it, in the order of their names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mmscale.errors import UserError


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in ``folder`` that are not hidden, by name."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name[0] != "." and entry.is_dir()]
    return [folder / name for name in sorted(names)]


def walk_folder(
    folder: Path,
    skipped: Path | None = None,
    root: Path | None = None,
    on_hidden: Callable[[Path], None] = lambda hidden: None,
) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its files), first ``folder`` and then each in it, by name.

    ``skipped`` is left out; hidden folders too, which ``on_hidden`` is given. A link to a folder
    is followed where it leads into ``root``, and refused elsewhere: what lies outside of a source
    is nobody's to pack. Raises `OSError` for a folder that cannot be read.
    """
    skipped, root = skipped and skipped.resolve(), root and root.resolve()
    # With the real folders above each: a link to one of them would lead in a circle.
    waiting: list[tuple[Path, tuple[Path, ...]]] = [(folder, (folder.resolve(),))]
    while waiting:
        folder, above = waiting.pop()
        folders: list[str] = []
        files: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                (folders if entry.is_dir() else files).append(entry.name)
        yield folder, sorted(files)
        inner: list[tuple[Path, tuple[Path, ...]]] = []
        for name in sorted(folders):
            path = folder / name
            if name.startswith("."):
                on_hidden(path)
                continue
            place = path.resolve()
            if path.is_symlink() and not (root and place.is_relative_to(root)):
                raise UserError(
                    f"{path}: a link to a folder, which is not followed; copy the folder there, "
                    "or name with --root a folder that it lies in"
                )
            if place in above:
                raise UserError(f"{path}: a link to a folder that it lies in; remove the link")
            if place != skipped:
                inner.append((path, (*above, place)))
        waiting.extend(reversed(inner))
