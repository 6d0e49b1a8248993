"""The shards of a local folder, and what lies beside and below them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mmscale.data.index.index_files import FOLDER, is_shard_name
from mmscale.data.index.tar_headers import scan
from mmscale.errors import UserError

_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def shards_of(directory: Path) -> list[Path]:
    """Every ``.tar`` (or ``.TAR``) of the folder, sorted; hidden ones are left out.

    Raises `UserError` when there is none, for what is compressed, and for names that are not UTF-8.
    """
    files = _files(directory)
    paths = [path for path in files if is_shard_name(path.name)]
    for path in files:
        if path.name.lower().endswith(_COMPRESSED):
            next(scan(path), None)  # refuses what is compressed, with the command that repairs it
            raise UserError(f"{path}: not compressed, against its name; rename it to .tar")
    if not paths:
        below = sorted({str(path.parent) for path in shards_below(directory)})
        if below:
            raise UserError(
                f"{directory}: no .tar shards but in sub-folders ({', '.join(below[:3])}"
                f"{', …' if len(below) > 3 else ''}); index each of these, and name them all in "
                "data.sets.NAME.shards"
            )
        raise UserError(f"{directory}: no .tar shards; make some with `mmscale data pack`")
    for path in paths:
        try:
            path.name.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"{os.fsencode(path)!r}: the name is not UTF-8; rename the shard"
            ) from None
    return paths


def files_beside(directory: Path) -> list[Path]:
    """Files of the folder that are no shards, sorted; hidden ones are left out."""
    return [path for path in _files(directory) if not is_shard_name(path.name)]


def shards_below(directory: Path) -> Iterator[Path]:
    """Shards in sub-folders, in order; links are not followed, hidden folders are left out."""
    for folder, names, files in os.walk(directory):
        names[:] = sorted(name for name in names if not name.startswith(".") and name != FOLDER)
        if Path(folder) != directory:
            yield from (Path(folder, name) for name in sorted(files) if is_shard_name(name))


def _files(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder; name the folder that holds the .tar shards")
    return sorted(
        path for path in directory.iterdir() if path.is_file() and not path.name.startswith(".")
    )
