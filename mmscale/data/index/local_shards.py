"""The shards of a local folder."""

from __future__ import annotations

import os
from pathlib import Path

from mmscale.data.index.tar_headers import scan
from mmscale.errors import UserError

_COMPRESSED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def shards_of(directory: Path) -> list[Path]:
    """Every ``.tar`` of the folder, sorted; hidden ones are left out.

    Raises `UserError` when there is none, for what is compressed, and for names that are not UTF-8.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder; name the folder that holds the .tar shards")
    files = sorted(
        path for path in directory.iterdir() if path.is_file() and not path.name.startswith(".")
    )
    paths = [path for path in files if path.suffix == ".tar"]
    for path in files:
        if path.name.endswith(_COMPRESSED):
            next(scan(path), None)  # refuses what is compressed, with the command that repairs it
            raise UserError(f"{path}: not compressed, against its name; rename it to .tar")
    if not paths:
        raise UserError(f"{directory}: no .tar shards; make some with `mmscale data pack`")
    for path in paths:
        try:
            path.name.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"{os.fsencode(path)!r}: the name is not UTF-8; rename the shard"
            ) from None
    return paths
