"""Writing shards, and packing a folder or a table of media and text into them."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tqdm import tqdm

from mmscale import prf
from mmscale.config import MediaConfig
from mmscale.data.fields import kind_of
from mmscale.data.index import build_index
from mmscale.data.manifest import Manifest
from mmscale.errors import UserError

_MEDIA_COLUMNS = ("image", "audio")


class ShardWriter:
    """Writes ``prefix-000000.tar``, … : the same bytes for the same samples, each shard whole or absent.

    Args:
        directory: made if it is missing.
        prefix: first part of the shards' names.
        samples_per_shard: samples after which a new shard begins.
    """

    def __init__(self, directory: Path, prefix: str = "shard", samples_per_shard: int = 1000) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._prefix, self._limit = directory, prefix, samples_per_shard
        self._tar: tarfile.TarFile | None = None
        self._number = self._samples = 0

    def write(self, key: str, fields: dict[str, bytes]) -> None:
        """Add one sample: ``fields`` maps endings such as ``png`` to file contents."""
        if self._tar is None:
            self._tar = tarfile.open(self._partial(), "w", format=tarfile.PAX_FORMAT)
        for ending, data in fields.items():
            info = tarfile.TarInfo(f"{key}.{ending}")  # owner 0, time 0, mode 0644: nothing of this machine
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
        self._samples += 1
        if self._samples == self._limit:
            self._finish_shard()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish_shard()
        elif self._tar is not None:
            self._tar.close()
            self._partial().unlink()

    def _partial(self) -> Path:
        return self._directory / f".{self._prefix}-{self._number:06d}.tar.partial"

    def _finish_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        os.replace(self._partial(), self._directory / f"{self._prefix}-{self._number:06d}.tar")
        self._tar, self._samples, self._number = None, 0, self._number + 1


@dataclass
class _Row:
    """A sample to be packed: files are read when they are written."""

    key: str
    files: dict[str, Path]  # ending → file
    texts: dict[str, str]  # ending → text


def pack(
    source: Path,
    out: Path,
    *,
    media: MediaConfig,
    shuffle_seed: int = 0,
    samples_per_shard: int = 1000,
    progress: bool = True,
) -> Manifest:
    """Pack ``source`` into shards in ``out`` and index them.

    A folder: files that share a path up to the first dot are one sample; in a sub-folder, the folder's name
    becomes ``json.label`` unless the sample has a .json of its own. A ``.csv`` or ``.jsonl``: columns ``image``
    and ``audio`` are paths relative to the table, ``text`` and ``cls`` are texts, ``key`` names the sample, and
    every other column goes to its ``json``. Media are stored as they are; samples are written in a keyed
    shuffled order, so that neighbours are mixed.

    Raises:
        UserError: nothing to pack, a file is missing or outside the source, or ``out`` holds shards already.
    """
    if out.exists() and any(out.glob("*.tar")):
        raise UserError(f"{out}: holds shards already; choose an empty folder, or remove them first")
    rows = _table_rows(source) if source.suffix in (".csv", ".jsonl") else _folder_rows(source)
    if not rows:
        raise UserError(f"{source}: nothing to pack; it holds no pictures, clips or texts")
    order = prf.Permutation(prf.derive_key("pack", shuffle_seed), len(rows))(np.arange(len(rows)))
    with ShardWriter(out, samples_per_shard=samples_per_shard) as writer:
        for number in tqdm(order.tolist(), unit="sample", desc="pack", disable=not progress):
            row = rows[number]
            fields = {ending: path.read_bytes() for ending, path in row.files.items()}
            fields.update({ending: text.encode("utf-8") for ending, text in row.texts.items()})
            writer.write(row.key, fields)
    return build_index(out, media, progress)


def _folder_rows(source: Path) -> list[_Row]:
    if not source.is_dir():
        raise UserError(f"{source}: no such folder, .csv or .jsonl")
    rows: dict[str, _Row] = {}
    for path in sorted(source.rglob("*")):
        stem, dot, ending = path.name.partition(".")
        if not path.is_file() or not stem or kind_of(ending.lower()) is None:
            continue
        key = (path.parent.relative_to(source) / stem).as_posix()
        rows.setdefault(key, _Row(key, {}, {})).files[ending.lower()] = path
    for key, row in rows.items():
        folder = key.rpartition("/")[0]
        if folder and "json" not in row.files:
            row.texts["json"] = json.dumps({"label": folder}, ensure_ascii=False)
    return list(rows.values())


def _table_rows(source: Path) -> list[_Row]:
    rows, seen = [], set()
    for number, record in enumerate(_records(source), start=1):
        where = f"{source}, row {number}"
        row = _Row(str(record.pop("key", "") or f"{number:09d}"), {}, {})
        if row.key in seen:
            raise UserError(f"{where}: key {row.key!r} appears twice; give every row its own")
        base = row.key.rpartition("/")[2]
        if not base or "." in base or row.key.startswith("/") or ".." in row.key.split("/"):
            raise UserError(f"{where}: key {row.key!r}: no dots in the last part, no .. and no leading slash")
        seen.add(row.key)
        for column in _MEDIA_COLUMNS:
            name = record.pop(column, None)
            if name:
                path = _inside(source.parent, str(name), where)
                row.files[path.suffix[1:].lower()] = path
                if kind_of(path.suffix[1:].lower()) != column:
                    raise UserError(f"{where}: {name}: not a known ending of {column} files")
        for column, ending in (("text", "txt"), ("cls", "cls")):
            value = record.pop(column, None)
            if value not in (None, ""):
                row.texts[ending] = str(value)
        if record:
            row.texts["json"] = json.dumps(record, ensure_ascii=False)
        rows.append(row)
    return rows


def _records(source: Path) -> Iterator[dict[str, Any]]:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{source}: no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{source}: not UTF-8; save the table as UTF-8") from None
    if source.suffix == ".csv":
        for number, record in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=1):
            if None in record or None in record.values():
                raise UserError(f"{source}, row {number}: has another number of columns than the header")
            yield dict(record)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UserError(f"{source}, row {number}: not a JSON object")
        yield record


def _inside(folder: Path, name: str, where: str) -> Path:
    """The file ``name`` of ``folder``; nothing outside the folder is ever packed."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UserError(f"{where}: {name}: lies outside {folder}; use paths inside the table's folder")
    if not path.is_file():
        raise UserError(f"{where}: {name}: no such file")
    return path
