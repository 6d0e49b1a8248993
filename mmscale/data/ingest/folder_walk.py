"""The files of a folder and of those in it, in the order of their names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mmscale.errors import UserError


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
    yield from _walk(folder, skipped, root, on_hidden, (folder.resolve(),))


def _walk(
    folder: Path,
    skipped: Path | None,
    root: Path | None,
    on_hidden: Callable[[Path], None],
    above: tuple[Path, ...],
) -> Iterator[tuple[Path, list[str]]]:
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            (folders if entry.is_dir() else files).append(entry.name)
    yield folder, sorted(files)
    for name in sorted(folders):
        inner = folder / name
        if name.startswith("."):
            on_hidden(inner)
            continue
        place = inner.resolve()
        if inner.is_symlink() and not (root and place.is_relative_to(root)):
            raise UserError(
                f"{inner}: a link to a folder, which is not followed; copy the folder there, or "
                "name with --root a folder that it lies in"
            )
        if place in above:
            raise UserError(f"{inner}: a link to a folder that it lies in; remove the link")
        if place != skipped:
            yield from _walk(inner, skipped, root, on_hidden, (*above, place))
