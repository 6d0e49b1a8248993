"""``manifest.json`` of a release: size and SHA-256 of every other file, so that nothing can change
unseen.

{"format": "mmscale-manifest", "version": 1, "files": {name: {"size": 123, "sha256": "…"}}}

It proves that a folder is whole. Who made it is proved by a signature
(`mmscale.release.signature`), which covers the manifest too.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mmscale.checkpoint.file_digest import file_digest
from mmscale.errors import UserError
from mmscale.json_file import read_object, write_object

NAME = "manifest.json"
_FORMAT = {"format": "mmscale-manifest", "version": 1}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NO_NAME = re.compile(r"[/\\\0\ud800-\udfff]")  # halves of characters cannot be encoded
_THREADS = 4  # hashing lets go of Python's lock
_AGAIN = "copy the release again, whole"


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and SHA-256, 64 hexadecimal digits."""

    size: int
    sha256: str


def write_manifest(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """List every file of ``folder``; ``known`` are the SHA-256 of those that were hashed while they
    were written.
    """
    known = known or {}
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != NAME:
            digest = known.get(path.name) or _digest(path)
            files[path.name] = {"size": path.stat().st_size, "sha256": digest}
    write_object(folder / NAME, {**_FORMAT, "files": files})


def read_manifest(folder: Path) -> dict[str, FileFacts] | None:
    """Every listed file; None where there is no manifest. Raises `UserError` if it is damaged."""
    path = folder / NAME
    if not os.path.lexists(path):
        return None
    tree = read_object(path, _AGAIN, _AGAIN)
    listed = tree.get("files")
    if any(tree.get(name) != value for name, value in _FORMAT.items()) or not isinstance(
        listed, dict
    ):
        raise UserError(f"{path}: not a manifest of this version; {_AGAIN}")
    files: dict[str, FileFacts] = {}
    for name, facts in listed.items():
        size, digest = (
            (facts.get("size"), facts.get("sha256")) if isinstance(facts, dict) else (None, None)
        )
        if not name or name in (".", "..", NAME) or _NO_NAME.search(name):
            raise UserError(f"{path}: {name[:60]!r} is no name of a file beside it; {_AGAIN}")
        if type(size) is not int or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise UserError(f"{path}: {name[:60]!r} has no size and SHA-256; {_AGAIN}")
        files[name] = FileFacts(size, digest)
    return files


def check_file_names(
    folder: Path, files: Mapping[str, FileFacts], besides: Collection[str] = ()
) -> None:
    """Raise `UserError` if a listed file is missing, or one is there that is neither listed nor in
    ``besides``.
    """
    present = _names(folder)
    missing = sorted(files.keys() - present)
    if missing:
        raise UserError(f"{folder / missing[0]}: missing; {_AGAIN}")
    added = sorted(present - files.keys() - {NAME, *besides})
    if added:
        raise UserError(
            f"{folder / added[0]}: was added, it is not in {NAME}; remove it, or name it with "
            "--ignore"
        )


def check_covered(folder: Path, files: Mapping[str, FileFacts]) -> None:
    """Raise `UserError` for a file that opening a release could read, by its ending, and that is
    not listed.

    Others, such as those a download adds, are never read.
    """
    read = {name for name in _names(folder) if name.endswith((".json", ".safetensors"))}
    added = sorted(read - files.keys() - {NAME})
    if added:
        raise UserError(
            f"{folder / added[0]}: is not in {NAME}; remove it, or copy the release again into an "
            "empty folder"
        )


def check_contents(
    folder: Path, files: Mapping[str, FileFacts], hashed: Collection[str] | None = None
) -> None:
    """Raise `UserError` for the first file of another size, or another SHA-256.

    ``hashed`` are the files whose bytes are read; None: all.
    """
    for name, facts in files.items():
        try:
            status = os.stat(folder / name)
        except FileNotFoundError:
            raise UserError(f"{folder / name}: missing; {_AGAIN}") from None
        except OSError as error:
            raise UserError(
                f"{folder / name}: cannot be read ({error.strerror}); {_AGAIN}"
            ) from None
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{folder / name}: is no plain file; {_AGAIN}")
        if status.st_size != facts.size:
            raise UserError(
                f"{folder / name}: was changed, it has {status.st_size} bytes and not "
                f"{facts.size}; {_AGAIN}"
            )
    names = [name for name in files if hashed is None or name in hashed]
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, digest in zip(
            names, pool.map(lambda name: _digest(folder / name), names), strict=True
        ):
            if digest != files[name].sha256:
                raise UserError(
                    f"{folder / name}: was changed, its SHA-256 is {digest[:16]}…; {_AGAIN}"
                )


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder)}
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be read ({error.strerror}); name the folder of a release"
        ) from None


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from None
