"""One sample to be packed, and what the cells of a table's row mean."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmscale.config import MediaConfig
from mmscale.data.index.probe import ENDINGS, Kind, kind_of
from mmscale.data.ingest.clip_cut import ClipCut, cut_sound
from mmscale.data.ingest.shard_writer import check_names, encode_sample
from mmscale.data.media.format import ending_of
from mmscale.errors import UserError

MEDIA_COLUMNS: tuple[Kind, ...] = ("image", "audio")
# Bytes of `TableRow.fingerprint`. 64 bits show that a row has changed; they keep
# nobody from forging.
FINGERPRINT_BYTES = 8


@dataclass(frozen=True)
class TableMedia:
    """A media file as it was when the source was read. ``name`` is how messages and fingerprints
    call it.
    """

    path: Path
    name: str
    size: int
    mtime_ns: int

    def read(self, where: str, media: MediaConfig) -> bytes:
        """All bytes. Raises `UserError` if the file cannot be read or is not what it was."""
        try:
            with open(self.path, "rb") as file:
                now = os.fstat(file.fileno())
                data = file.read(media.max_file_bytes + 1)
        except OSError as error:
            raise UserError(
                f"{where}: {self.path}: cannot be read ({error.strerror}); check the file"
            ) from None
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns) or len(data) != self.size:
            raise UserError(
                f"{where}: {self.path}: changed while it was packed; give the command again"
            )
        return data


@dataclass(frozen=True)
class TableCut(TableMedia):
    """A part of a recording, decoded and written as FLAC when its sample is encoded."""

    cut: ClipCut

    def read(self, where: str, media: MediaConfig) -> bytes:
        """The part as FLAC. Raises `UserError` if the file cannot be read or is not what it was."""
        try:
            with open(self.path, "rb") as file:
                now = os.fstat(file.fileno())
                if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
                    raise UserError("changed while it was packed; give the command again")
                return cut_sound(file, self.cut, media.max_file_bytes)
        except OSError as error:
            reason = f"cannot be read ({error.strerror}); check the file"
        except UserError as error:
            reason = str(error)
        raise UserError(f"{where}: {self.path}: {reason}")


@dataclass
class TableRow:
    """One sample to be packed. Media files are read only when it is encoded.

    Attributes:
        where: the folder and stem, or the table and row, for messages.
        fields: by WebDataset field, in the order in which they are written.
    """

    where: str
    key: str
    fields: dict[str, TableMedia | bytes] = field(default_factory=dict)

    def check(self) -> None:
        """Raise `UserError` if the key or a field could not be read back from a shard."""
        try:
            check_names(self.key, list(self.fields))
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from None

    def encode(self, media: MediaConfig) -> bytes:
        """The sample as `shard_writer.encode_sample` gives it. Raises `UserError` naming the
        row.
        """
        fields = {
            name: value if isinstance(value, bytes) else value.read(self.where, media)
            for name, value in self.fields.items()
        }
        try:
            return encode_sample(self.key, fields)
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from None

    def fingerprint(self) -> bytes:
        """`FINGERPRINT_BYTES` that change when the row, or the size or time of one of its files,
        does.
        """
        digest = hashlib.blake2b(_lengths_first(self.key), digest_size=FINGERPRINT_BYTES)
        for name, value in self.fields.items():
            digest.update(_lengths_first(name))
            if isinstance(value, bytes):
                digest.update(b"data %d:" % len(value) + value)
            else:
                digest.update(
                    b"file %d %d " % (value.size, value.mtime_ns) + _lengths_first(value.name)
                )
        return digest.digest()


class RowReader:
    """Makes samples of the rows of tables in ``folder``. No row can lead out of it, but into
    ``others``. A relative path that ``folder`` lacks is looked up in ``root``, one of them.

    ``image`` and ``audio`` hold a path relative to ``folder``, the encoded bytes, or ``{"bytes",
    "path"}`` as Hugging Face datasets write it; ``audio`` also a `ClipCut` of a recording;
    ``text`` and ``cls`` a string or number; ``key`` the sample's name. An ``image``, ``audio`` or
    ``text`` that is a list becomes the fields ``0.jpg``, ``1.jpg``, …. What other columns hold
    becomes the sample's json; dates and times are ISO 8601 text there, decimals text too. Nulls,
    NaN and empty strings are no values.
    """

    def __init__(
        self,
        folder: Path,
        media: MediaConfig,
        others: Iterable[Path] = (),
        root: Path | None = None,
    ) -> None:
        self._folder, self._root, self._media = folder, root, media
        self._base = tuple(base.resolve() for base in (folder, *others))

    def row(
        self,
        where: str,
        columns: dict[str, Any],
        default_key: str,
        *,
        key_prefix: str = "",
        files: dict[str, Path] | None = None,
        named: dict[str, Any] | None = None,
    ) -> TableRow:
        """The sample of one row; ``files`` and ``named`` as `layout.SourceRow` has them.

        Raises `UserError` that begins with ``where`` and names the column.
        """
        columns = {name: value for name, value in columns.items() if not is_empty(value)}
        if not columns and not files and not named:
            raise UserError(f"{where}: empty; remove the row")
        row = TableRow(where, key_prefix + plain(columns.pop("key", default_key), "key", where))
        for ending, path in (files or {}).items():
            row.fields[ending] = check_file(
                path, path.name, self._base, str(path), self._media.max_file_bytes
            )
        for kind in MEDIA_COLUMNS:
            for prefix, item, label in _items(columns.pop(kind, []), kind, where):
                ending, value = self._medium(kind, item, label)
                row.fields[prefix + ending] = value
        for name, media in (named or {}).items():
            if is_empty(media):
                continue
            for prefix, item, label in _items(media, name, where):
                ending, value = self._medium(None, item, label)
                row.fields[f"{name}.{prefix}{ending}"] = value
        for prefix, item, label in _items(columns.pop("text", []), "text", where):
            row.fields[f"{prefix}txt"] = utf8(
                plain(item, label.removeprefix(f"{where}: "), where), where
            )
        if "cls" in columns:
            row.fields["cls"] = utf8(plain(columns.pop("cls"), "cls", where), where)
        if columns:
            row.fields["json"] = encode_json(columns, where)
        if not row.fields:
            raise UserError(f"{where}: nothing but a key; remove the row")
        return row

    def _medium(self, kind: Kind | None, item: Any, label: str) -> tuple[str, TableMedia | bytes]:
        """Ending and content of one image or audio value; ``label`` names it in messages.

        ``kind`` None: of either.
        """
        if isinstance(item, dict):
            if not item.keys() <= {"bytes", "path"}:
                unknown = ", ".join(sorted(item.keys() - {"bytes", "path"}))
                raise UserError(
                    f"{label} has the part {unknown}; write a path, bytes, or {{bytes, path}}"
                )
            # The path beside bytes is where they once were; nothing is there to be read.
            item = item.get("path") if item.get("bytes") is None else item["bytes"]
        if isinstance(item, bytes):
            return self._ending(kind, item, label), item
        if isinstance(item, ClipCut):
            # The recording may be far longer than what is stored of it.
            named = f"{label} {item.path!r}"
            file = check_file(self._path(item.path), item.name(), self._base, named)
            return "flac", TableCut(file.path, file.name, file.size, file.mtime_ns, item)
        where, _, column = label.rpartition(": ")
        name = plain(item, column, where)
        path = self._path(name)
        ending = path.suffix.lower().removeprefix(".")
        if kind_of(ending) not in _kinds(kind):
            raise UserError(f"{label} {name!r} does not end in {_endings(kind)}; convert it")
        return ending, check_file(
            path, name, self._base, f"{label} {name!r}", self._media.max_file_bytes
        )

    def _path(self, name: str) -> Path:
        path = self._folder / name
        if self._root is not None and not os.path.lexists(path):
            return self._root / name
        return path

    def _ending(self, kind: Kind | None, data: bytes, label: str) -> str:
        if len(data) > self._media.max_file_bytes:
            raise UserError(
                f"{label} of {len(data)} bytes {_over_limit(self._media.max_file_bytes)}"
            )
        ending = ending_of(data)
        known = _endings(kind)
        if ending is None:
            raise UserError(
                f"{label} of {len(data)} bytes that begin with {data[:8]!r} is none of {known}; "
                "convert it"
            )
        if kind_of(ending) not in _kinds(kind):
            raise UserError(
                f"{label} is {ending}, not one of {known}; put it into the right column"
            )
        return ending


def _kinds(kind: Kind | None) -> tuple[Kind, ...]:
    return MEDIA_COLUMNS if kind is None else (kind,)


def _endings(kind: Kind | None) -> str:
    return ", ".join(ending for one in _kinds(kind) for ending in ENDINGS[one])


def check_file(
    path: Path, name: str, bases: tuple[Path, ...], where: str, max_bytes: int | None = None
) -> TableMedia:
    """Refuse a file that is missing, too large, or outside all ``bases`` (resolved) by ``..``,
    root or link.

    Raises `UserError` that begins with ``where``.
    """
    try:
        place = path.resolve(strict=True)
        inside = any(place.is_relative_to(base) for base in bases)
        status = path.stat()
    except (OSError, ValueError, RuntimeError):  # a NUL in the name, a loop of links
        raise UserError(f"{where}: no such file; correct the name or restore the file") from None
    if not inside:
        allowed = " and ".join(map(str, dict.fromkeys(bases)))
        raise UserError(f"{where}: lies outside {allowed}; name the folder it lies in with --root")
    if not path.is_file():
        raise UserError(f"{where}: not a plain file; name a file")
    if max_bytes is not None and status.st_size > max_bytes:
        raise UserError(f"{where}: {status.st_size} bytes {_over_limit(max_bytes)}")
    return TableMedia(path, name, status.st_size, status.st_mtime_ns)


def plain(value: Any, column: str, where: str) -> str:
    """The text of a string or number. Raises `UserError` for anything else."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: {column} is {json.dumps(value, default=repr)[:40]}; write a string")


def encode_json(columns: dict[str, Any], where: str) -> bytes:
    """The sample's json, UTF-8. Raises `UserError` naming the column whose value JSON cannot
    hold.
    """
    values = {}
    for column, value in columns.items():
        try:
            values[column] = _jsonable(value, f"{where}: column {column!r}")
        except RecursionError:
            raise UserError(f"{where}: column {column!r}: nested too deep; flatten it") from None
    return utf8(json.dumps(values, ensure_ascii=False, allow_nan=False), where)


def utf8(text: str, where: str) -> bytes:
    """``text`` as UTF-8. Raises `UserError` for half of a surrogate pair."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: holds half of a surrogate pair, which is no text; correct it"
        ) from None


def is_empty(value: Any) -> bool:
    """Whether a cell holds no value: null, NaN, an empty string, or Hugging Face's layout of no
    medium.
    """
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return value["bytes"] is None and not value["path"]
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _items(value: Any, column: str, where: str) -> list[tuple[str, Any, str]]:
    """(prefix of the field, value, what messages call it) of one value or of each in a list."""
    if not isinstance(value, list):
        return [("", value, f"{where}: {column}")]
    items = []
    for number, item in enumerate(value):
        label = f"{where}: {column} {number + 1} of {len(value)}"
        if is_empty(item):
            raise UserError(f"{label} is empty; remove it from the list")
        items.append((f"{number}.", item, label))
    return items


def _jsonable(value: Any, where: str) -> Any:
    if isinstance(value, list | tuple):
        return [_jsonable(item, where) for item in value]
    if isinstance(value, dict):
        return {str(name): _jsonable(item, where) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise UserError(
            f"{where} is infinite, which JSON cannot hold; write a finite number or leave it out"
        )
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise UserError(
        f"{where} holds {type(value).__name__}, which JSON cannot hold; drop it or write text"
    )


def _over_limit(max_bytes: int) -> str:
    return f"are over media.max_file_bytes={max_bytes}; raise the limit or remove the file"


def _lengths_first(text: str) -> bytes:
    """Unambiguous when several are joined. Names of files may hold bytes that are not UTF-8."""
    raw = text.encode("utf-8", "surrogateescape")
    return b"%d:" % len(raw) + raw
