"""The index that lies beside remote shards, copied to the cache so that it can be memory-mapped.

A copy is kept under the hash of its URL and its ``manifest.json``, so what is found there is right,
and an index that is replaced on the server gets another folder. It is made beside its final place
and one rename commits it. Its room counts within the cache's bound.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mmscale.config import CacheConfig
from mmscale.data.fetching.cache_room import CacheRoom, make_cache_folder
from mmscale.data.index.index_files import FACTS, FIELD_NAME, FOLDER, VERSION, IndexFiles
from mmscale.data.index.kept_texts import check_texts
from mmscale.data.index.tar_headers import MAX_NAME_BYTES
from mmscale.data.storage.file_lock import locked
from mmscale.data.storage.remote_file import CHUNK, RemoteFault, RemoteFile, open_remote
from mmscale.data.storage.url import join_url
from mmscale.errors import UserError

_MAX_MANIFEST_BYTES = 1 << 28
_NPY_HEADER_BYTES = 4096
_MAX_PROBLEM_BYTES = 32 * MAX_NAME_BYTES  # a line holds three names and a reason
_REMEDY = "index the shards with `mmscale data index` and upload the folder index/ with them"


def fetch_index(base: str, cache: CacheConfig) -> Path:
    """The local folder that holds a copy of the index of the remote folder ``base``.

    Raises `UserError` when there is none, it cannot be fetched, is damaged or larger than the cache
    may be.
    """
    manifest = _read_manifest(base, cache)
    files = _files(base, manifest)
    folder = cache.folder() / "indexes"
    make_cache_folder(folder)
    root = folder / hashlib.sha256(base.encode() + b"\n" + manifest).hexdigest()[:32]
    room = CacheRoom(cache)
    with locked(root.with_suffix(".lock")):
        if root.is_dir():
            return root
        part = root.with_suffix(".part")
        try:
            shutil.rmtree(part, ignore_errors=True)  # left by a killed process
            room.make_folder(part / FOLDER, _what(base))
            _fetch_files(base, files, part / FOLDER, cache, room)
            if _read_manifest(base, cache) != manifest:
                raise UserError(
                    f"{base}/{FOLDER}: the index was replaced while it was fetched; start again"
                )
            tree = json.dumps(json.loads(manifest) | {"base": base}, ensure_ascii=False).encode()
            with open(part / FOLDER / "manifest.json", "wb") as file:
                room.claim(file.fileno(), len(tree), _what(base))
                file.write(tree)
            _check(part, base)
            room.rename(part, root)
        except OSError as error:
            raise UserError(
                f"data.cache.dir: {folder}: {error.strerror}; make room or name another"
            ) from None
        finally:
            if part.exists():
                shutil.rmtree(part, ignore_errors=True)
                room.recount()
    return root


def _what(base: str) -> str:
    return f"the index of {base}"


def kept_index(base: str, cache: CacheConfig) -> Path | None:
    """What `fetch_index` gave last for the remote folder ``base``, without asking the server; None
    if that is not in the cache.
    """
    found = []
    for root in (cache.folder() / "indexes").glob("*/"):
        file = root / FOLDER / "manifest.json"
        with suppress(OSError, ValueError, AttributeError):  # being made, or not ours
            if root.suffix != ".part" and json.loads(file.read_bytes()).get("base") == base:
                found.append((file.stat().st_mtime_ns, root))
    return max(found)[1] if found else None


def fetch_beside(base: str, root: Path, name: str, size: int, cache: CacheConfig) -> bool:
    """Fetch one more file of the index of the remote folder ``base`` to its copy in ``root``.

    Args:
        base: URL of the folder that has ``index/``.
        root: where the copy of the index lies.
        name: of the file.
        size: that the file must have; another one is left where it is.
        cache: for the room it takes.

    Returns:
        Whether it is there now. Who has no such file is asked by one request.
    """
    target, room = root / FOLDER / name, CacheRoom(cache)
    part = target.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        with (
            RemoteFile(join_url(base, f"{FOLDER}/{name}"), cache.retries) as source,
            open(part, "wb") as file,
        ):
            if source.size != size:
                return False
            fcntl.flock(file, fcntl.LOCK_EX)  # else taken for a dead process's
            if root.is_relative_to(cache.folder()):
                room.claim(file.fileno(), size, _what(base))
            buffer = memoryview(bytearray(min(CHUNK, size)))
            while got := source.readinto(buffer):
                file.write(buffer[:got])
            file.flush()
            room.rename(part, target)
    except (RemoteFault, OSError):
        return False
    finally:
        part.unlink(missing_ok=True)
    return True


def _read_manifest(base: str, cache: CacheConfig) -> bytes:
    url = join_url(base, f"{FOLDER}/manifest.json")
    with open_remote(url, cache.retries, _REMEDY) as source:
        if source.size > _MAX_MANIFEST_BYTES:
            raise _damaged(url)
        return source.readall()


def _files(base: str, manifest: bytes) -> dict[str, int]:
    """The files of the index besides its manifest, each with the most bytes it can have."""
    url = join_url(base, f"{FOLDER}/manifest.json")
    try:
        tree = json.loads(manifest)
        version, samples, problems, fields = (
            tree[k] for k in ("version", "samples", "problems", "fields")
        )
        texts = dict(tree.get("texts", {}))
    except (ValueError, RecursionError, KeyError, TypeError):
        raise _damaged(url) from None
    if version != VERSION:
        raise UserError(
            f"{url}: index version {version!r}, this release reads {VERSION}; {_REMEDY}"
        )
    if type(samples) is not int or type(problems) is not int or not isinstance(fields, list):
        raise _damaged(url)
    if not all(isinstance(field, str) and FIELD_NAME.fullmatch(field) for field in fields):
        raise _damaged(url)
    if not (set(texts) <= set(fields) and all(type(size) is int for size in texts.values())):
        raise _damaged(url)
    column = np.dtype(FACTS).itemsize * samples + _NPY_HEADER_BYTES
    return {
        "key_ends.npy": 8 * samples + _NPY_HEADER_BYTES,
        "keys.npy": MAX_NAME_BYTES * samples + _NPY_HEADER_BYTES,
        "problems.jsonl": _MAX_PROBLEM_BYTES * problems,
        **{f"field.{field}.npy": column for field in fields},
        **{f"texts.{field}.npy": size + _NPY_HEADER_BYTES for field, size in texts.items()},
    }


def _fetch_files(
    base: str, files: dict[str, int], target: Path, cache: CacheConfig, room: CacheRoom
) -> None:
    buffer = memoryview(bytearray(CHUNK))
    with tqdm(desc="fetch index", total=0, unit="B", unit_scale=True, disable=None) as bar:
        for name, most in files.items():
            url = join_url(base, f"{FOLDER}/{name}")
            with (
                open_remote(url, cache.retries, _REMEDY) as source,
                open(target / name, "wb") as file,
            ):
                if source.size > most:
                    raise _damaged(url)
                room.claim(file.fileno(), source.size, _what(base))
                bar.total = (bar.total or 0) + source.size
                while size := source.readinto(buffer):
                    file.write(buffer[:size])
                    bar.update(size)


def _check(root: Path, base: str) -> None:
    try:
        stored = IndexFiles(root)
        for field in stored.fields:
            stored.column(field)
        for field in stored.kept_texts:
            stored.texts(field)
        check_texts(stored)
    except UserError:
        raise _damaged(f"{base}/{FOLDER}") from None


def _damaged(url: str) -> UserError:
    return UserError(f"{url}: the index is damaged; {_REMEDY}")
