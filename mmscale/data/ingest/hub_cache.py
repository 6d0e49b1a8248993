"""The download cache of Hugging Face: a folder a data set, with links into its blobs.

``datasets--OWNER--NAME/snapshots/REVISION/…`` holds links to ``../../blobs/HASH``.
"""

from __future__ import annotations

from pathlib import Path

from mmscale.errors import UserError

_PREFIX = "datasets--"
_SNAPSHOTS = "snapshots"


def snapshot_in(source: Path) -> Path:
    """The one snapshot to read of a data set's folder in the cache; any other source as it is.

    Raises `UserError` where several are there and none is that of ``main``.
    """
    if not source.resolve().name.startswith(_PREFIX) or not (source / _SNAPSHOTS).is_dir():
        return source
    snapshots = sorted(path for path in (source / _SNAPSHOTS).iterdir() if path.is_dir())
    main = source / "refs" / "main"
    if len(snapshots) > 1 and main.is_file():
        revision = main.read_text("utf-8", "replace").strip()
        snapshots = [path for path in snapshots if path.name == revision] or snapshots
    if len(snapshots) != 1:
        raise UserError(
            f"{source}: {len(snapshots)} snapshots; name the one to pack: "
            f"{source / _SNAPSHOTS}/REVISION"
        )
    return snapshots[0]


def cache_of(source: Path) -> Path | None:
    """The data set's folder in the cache that ``source`` lies in, whose links lead into it; None:
    it lies in none.
    """
    for folder in (source.absolute(), *source.absolute().parents):
        if folder.name == _SNAPSHOTS and folder.parent.name.startswith(_PREFIX):
            return folder.parent
    return None
