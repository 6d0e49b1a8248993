"""The shards of a local folder, and what lies beside and below them."""

from __future__ import annotations

import os
from pathlib import Path

from mmscale.data.index.index_files import FOLDER, is_shard_name
from mmscale.data.index.tar_headers import scan
from mmscale.errors import UserError

_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def shards_of(directory: Path, below: bool = False) -> list[Path]:
    """Every ``.tar`` (or ``.TAR``) of the folder, sorted; hidden ones are left out.

    ``below``: also of its sub-folders; links to folders are not followed.

    Raises `UserError` when there is none, for what is compressed, and for names that are not UTF-8.
    """
    files = _files(directory, below)
    paths = [path for path in files if is_shard_name(path.name)]
    for path in files:
        if path.name.lower().endswith(_COMPRESSED):
            next(scan(path), None)  # refuses what is compressed, with the command that repairs it
            raise UserError(f"{path}: not compressed, against its name; rename it to .tar")
    if not paths:
        others = [path.parent for path in _files(directory, True) if is_shard_name(path.name)]
        if others:
            raise UserError(
                f"{directory}: no .tar shards but in sub-folders, such as {others[0]}; take them "
                "with --recursive, or index each folder"
            )
        raise UserError(f"{directory}: no .tar shards; make some with `mmscale data pack`")
    for path in paths:
        try:
            shard_name(directory, path).encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"{os.fsencode(path)!r}: the name is not UTF-8; rename the shard"
            ) from None
    return paths


def shard_name(directory: Path, path: Path) -> str:
    """How an index of ``directory`` names the shard: its path from there."""
    return path.relative_to(directory).as_posix()


def files_beside(directory: Path, below: bool) -> list[Path]:
    """Files of the folder (``below``: and its sub-folders) that are no shards, sorted; hidden ones
    are left out.
    """
    return [path for path in _files(directory, below) if not is_shard_name(path.name)]


def shards_below(directory: Path) -> list[Path]:
    """Shards in sub-folders, sorted."""
    return [
        path
        for path in _files(directory, True)
        if is_shard_name(path.name) and path.parent != directory
    ]


def _files(directory: Path, below: bool) -> list[Path]:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder; name the folder that holds the .tar shards")
    found = []
    for folder, names, files in os.walk(directory):
        names[:] = [name for name in names if below and name != FOLDER and not _is_hidden(name)]
        paths = [Path(folder, name) for name in files if not _is_hidden(name)]
        found += [path for path in paths if path.is_file()]
    return sorted(found, key=lambda path: shard_name(directory, path))


def _is_hidden(name: str) -> bool:
    return name.startswith(".")
