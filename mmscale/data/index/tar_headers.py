"""A strict reader of tar headers: where every field of every sample lies in a shard.

Python's own ``tarfile`` (and webdataset on top of it) forgives: a file cut between two members
reads as a shorter archive, a second archive appended to the first is never seen, links are
followed. On training data each of these loses or doubles samples without a word. Here everything
that is not a plain WebDataset shard is an error that names the shard, the byte and the remedy.

Read: ustar and V7 headers, GNU long names (``L``), pax ``path`` and ``size`` records (``x`` and
    ``g``).
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn, Protocol

from mmscale.data.account import Notice
from mmscale.data.index.sample_keys import AUTO, FIRST, split_name, webdataset_key
from mmscale.errors import UserError

BLOCK = 512
MAX_NAME_BYTES = 4096
MAX_EXTENDED_BYTES = 1 << 20

_ZERO = bytes(BLOCK)
_CHUNK = 1 << 20
_OCTAL = re.compile(rb" *([0-7]*) *")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_REGULAR = (b"0", b"\0", b"7")
_REFUSED = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"6": "named pipe",
    b"K": "link with a long target",
    b"S": "sparse file",
    b"D": "GNU dump directory",
    b"M": "continuation of another volume",
    b"V": "volume label",
}
_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
_AGAIN = "copy or download the shard again"

# What an index pass may go on after, told; to `data verify` each is a fault.
Forgive = Callable[[Notice, str], object]
NO_END = Notice(
    "shards without an end marker (two zero blocks)",
    "some writers leave it out; if a shard was cut short, copy it again; `data verify` says which",
)
TWICE = Notice(
    "members of samples that stand twice in a shard, of which the first copy is taken",
    "write the shard again with each sample once",
)
_REWRITE = "write the shard again with plain files only (`mmscale data pack` does)"


@dataclass(frozen=True)
class Member:
    """One field of one sample: ``size`` bytes from ``offset`` of the shard, counted from its
    start.
    """

    name: str
    key: str
    field: str
    offset: int
    size: int


class TarInput(Protocol):
    """What is needed of a shard. `seek` is only ever called with offsets that lie ahead."""

    def read(self, size: int, /) -> bytes: ...

    def seek(self, offset: int, /) -> int: ...


def scan(path: Path | str, key_dots: str = FIRST) -> Iterator[Member]:
    """Members of the shard ``path`` in their order, from one forward pass that skips the payloads.

    ``key_dots`` says which dot of the base name ends the key (`sample_keys`); by default the first,
    as in webdataset. The field is the rest in lower case. Directories, hidden files, files without
    an extension and webdataset's ``__name__`` metadata are skipped.

    Raises `UserError` naming the shard, the byte offset and the remedy for: compressed, truncated
    or concatenated archives, a missing end marker, bad header checksums, links, devices, sparse
    files, absolute or ``..`` names, names that are not UTF-8 or hold control characters, sizes
    beyond the file, a field that a sample has twice, a key whose members do not stand together.
    """
    with open_shard(path) as file:
        yield from scan_source(file, os.fstat(file.fileno()).st_size, path, key_dots)


def open_shard(path: Path | str) -> BinaryIO:
    """Open a shard for reading bytes. Raises `UserError` unless ``path`` is a readable plain
    file.
    """
    try:
        # Asked first, because opening a named pipe would wait for its writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path}: not a plain file; a shard is an uncompressed .tar file")
        return open(path, "rb")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check the path and its rights"
        ) from None


def scan_source(
    source: TarInput,
    total: int,
    path: Path | str,
    key_dots: str = FIRST,
    left_out: Callable[[str], object] = lambda name: None,
    forgive: Forgive | None = None,
) -> Iterator[Member]:
    """`scan` over an open shard of ``total`` bytes; ``path`` is for messages. ``left_out`` is given
    the name of each file that belongs to no sample. ``forgive`` is told what is `NO_END` or
    `TWICE`, with an example; without it, they are errors.

    Between two members the caller may read the payload from ``source``, which stands at its start.
    When the iterator ends, all ``total`` bytes have been read or skipped.
    """
    finished: dict[str, frozenset[str]] = {}  # their fields; most samples have the same
    known: dict[frozenset[str], frozenset[str]] = {}
    # With ``auto`` the members of a webdataset key, its run, may be samples with longer keys.
    run, fields = "", dict[str, set[str]]()
    for header in _Reader(source, total, path, forgive).entries():
        split = split_name(header.name, key_dots)
        if split is None:
            left_out(header.name)
            continue
        key, field = split
        own_run = webdataset_key(key) if key_dots == AUTO else key
        if own_run != run:
            for done, own in fields.items():
                frozen = frozenset(own)
                finished[done] = known.setdefault(frozen, frozen)
            run, fields = own_run, {}
        again = field in fields.get(key, ())
        if forgive is not None and (again or field in finished.get(key, ())):
            forgive(TWICE, header.name)
            continue
        if key in finished:
            _refuse(
                path,
                header.start,
                f"key {key!r} appears again after other samples",
                "write the members of a sample one after another (`tar --sort=name` does)",
            )
        if again:
            _refuse(
                path,
                header.start,
                f"sample {key!r} has field {field!r} twice",
                "remove or rename one of the two",
            )
        fields.setdefault(key, set()).add(field)
        yield Member(header.name, key, field, header.payload, header.size)


def name_fault(raw: bytes) -> str | None:
    """What forbids ``raw`` as the name of a member; None if nothing does."""
    if not raw or len(raw) > MAX_NAME_BYTES:
        return f"a member name of {len(raw)} bytes (1 to {MAX_NAME_BYTES} are read)"
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        return f"member name {raw[:80]!r} is not UTF-8"
    if _CONTROL.search(name):
        return f"member name {name[:80]!r} holds control characters"
    if name.startswith("/") or ".." in name.split("/"):
        return f"member name {name[:80]!r} points outside the archive"
    return None


@dataclass(frozen=True)
class _Header:
    name: str
    start: int
    payload: int
    size: int


class _Reader:
    """Walks from header to header; holds the extended headers that wait for their member."""

    def __init__(
        self, source: TarInput, total: int, path: Path | str, forgive: Forgive | None
    ) -> None:
        self._source, self._total, self._path = source, total, path
        self._forgive = forgive
        self._global: dict[bytes, bytes] = {}
        self._pax: dict[bytes, bytes] = {}
        self._long_name: bytes | None = None
        self._extended = -1  # offset of the first extended header that waits

    def entries(self) -> Iterator[_Header]:
        """Plain files, names checked, every payload inside the file."""
        at = 0
        while True:
            self._source.seek(at)
            block = self._source.read(BLOCK)
            if len(block) < BLOCK:
                self._check_plain(block, at)
                if not block and 0 < at == self._total and self._ends_without_marker():
                    return
                what = (
                    "ends in the middle of a header"
                    if block
                    else "the end marker (two zero blocks) is missing"
                )
                _refuse(self._path, at, what, f"the file was cut short: {_AGAIN}")
            if block == _ZERO:
                self._finish(at)
                return
            self._check_sum(block, at)
            kind, payload = block[156:157], at + BLOCK
            if kind in (b"L", b"x", b"g"):
                at = self._read_extended(block, kind, at)
                continue
            if kind in _REFUSED:
                _refuse(self._path, at, f"a {_REFUSED[kind]}", _REWRITE)
            if kind != b"5" and kind not in _REGULAR:
                _refuse(self._path, at, f"a member of unknown type {kind!r}", _REWRITE)
            records, name = self._take_extended(block, at)
            if kind == b"5" or (kind == b"\0" and name.endswith("/")):
                at = payload  # the size of a directory is a reservation; no payload follows
                continue
            size = self._pax_size(records, at) if b"size" in records else self._size(block, at)
            self._check_inside(name, at, size)
            yield _Header(name, at, payload, size)
            at = payload + _padded(size)

    def _check_sum(self, block: bytes, at: int) -> None:
        expected = _number(block[148:156])
        # The sum counts its own field as spaces. Some old writers summed signed bytes.
        unsigned = sum(block) - sum(block[148:156]) + 8 * 0x20
        if expected == unsigned:
            return
        high = sum(byte > 127 for byte in block) - sum(byte > 127 for byte in block[148:156])
        if expected == unsigned - 256 * high:
            return
        self._check_plain(block, at)
        what = (
            "the header checksum is wrong"
            if at
            else "the header checksum is wrong; is this a tar file?"
        )
        _refuse(self._path, at, what, f"the file is damaged: {_AGAIN}")

    def _check_plain(self, block: bytes, at: int) -> None:
        """Refuse a compressed archive, once its first block is known to be no header."""
        for magic, program in _COMPRESSED:
            if at == 0 and block.startswith(magic):
                _refuse(
                    self._path,
                    at,
                    f"a {program}-compressed archive, in which samples cannot be addressed",
                    f"run: {program} -dc < {shlex.quote(str(self._path))} > plain.tar",
                )

    def _size(self, block: bytes, at: int) -> int:
        size = _number(block[124:136])
        if size is None:
            _refuse(
                self._path,
                at,
                "the size in the header is not a number",
                f"the file is damaged: {_AGAIN}",
            )
        return size

    def _pax_size(self, records: dict[bytes, bytes], at: int) -> int:
        value = records[b"size"]
        if not value.isdigit() or len(value) > 20:
            _refuse(
                self._path, at, "the pax size is not a number", f"the file is damaged: {_AGAIN}"
            )
        return int(value)

    def _check_inside(self, name: str, at: int, size: int) -> None:
        missing = at + BLOCK + size - self._total
        if size > self._total:
            _refuse(
                self._path,
                at,
                f"member {name!r} claims {size} bytes, more than the whole file ({self._total})",
                f"the file is damaged or cut short: {_AGAIN}",
            )
        if missing > 0:
            _refuse(
                self._path,
                at,
                f"truncated: member {name!r} lacks its last {missing} bytes",
                f"cut short: {_AGAIN}",
            )

    def _read_extended(self, block: bytes, kind: bytes, at: int) -> int:
        """Read an extended header at ``at``; returns where the next header stands."""
        size = self._size(block, at)
        if size > MAX_EXTENDED_BYTES:
            _refuse(
                self._path,
                at,
                f"an extended header of {size} bytes (limit {MAX_EXTENDED_BYTES})",
                _REWRITE,
            )
        body = self._source.read(size)
        if len(body) < size:
            _refuse(self._path, at, "truncated inside an extended header", f"cut short: {_AGAIN}")
        if kind == b"L":
            if self._long_name is not None:
                _refuse(self._path, at, "two long names for one member", _REWRITE)
            self._long_name = body.rstrip(b"\0")
        else:
            records = _pax_records(body)
            if records is None:
                _refuse(self._path, at, "a malformed pax header", f"the file is damaged: {_AGAIN}")
            if any(name.startswith(b"GNU.sparse.") for name in records):
                _refuse(self._path, at, "a sparse file", _REWRITE)
            if kind == b"g":
                self._global.update(records)
            elif self._pax:
                _refuse(self._path, at, "two pax headers for one member", _REWRITE)
            else:
                self._pax = records
        if kind != b"g" and self._extended < 0:
            self._extended = at
        return at + BLOCK + _padded(size)

    def _take_extended(self, block: bytes, at: int) -> tuple[dict[bytes, bytes], str]:
        """The pax records and the name of the member at ``at``; the next member starts
        without any.
        """
        # An empty value takes a global record back.
        records = {name: value for name, value in (self._global | self._pax).items() if value}
        long_name = self._long_name
        self._pax, self._long_name, self._extended = {}, None, -1
        if long_name is not None and b"path" in records:
            _refuse(self._path, at, "a member with both a GNU and a pax long name", _REWRITE)
        if long_name is not None:
            raw = long_name
        elif b"path" in records:
            raw = records[b"path"]
        else:
            raw = _text(block[0:100])
            # GNU's own format keeps times, not a path, where POSIX has the prefix.
            if block.startswith(b"ustar\0", 257) and (prefix := _text(block[345:500])):
                raw = prefix + b"/" + raw
        fault = name_fault(raw)
        if fault is not None:
            _refuse(self._path, at, fault, "rename the member and write the shard again")
        return records, raw.decode("utf-8")

    def _ends_without_marker(self) -> bool:
        """Whether the file may end here, after a whole member."""
        if self._forgive is None or self._extended >= 0:
            return False
        self._forgive(NO_END, str(self._path))
        return True

    def _finish(self, at: int) -> None:
        if self._extended >= 0:
            _refuse(self._path, self._extended, "an extended header without its member", _REWRITE)
        second = self._source.read(BLOCK)
        if len(second) < BLOCK and not any(second) and at and self._ends_without_marker():
            return
        if len(second) < BLOCK:
            _refuse(
                self._path,
                at,
                "the end marker (two zero blocks) is missing",
                f"the file was cut short: {_AGAIN}",
            )
        if second != _ZERO:
            _refuse(
                self._path, at, "a zero block between members", f"the file is damaged: {_AGAIN}"
            )
        at += 2 * BLOCK
        while chunk := self._source.read(_CHUNK):
            if chunk.count(0) != len(chunk):
                _refuse(
                    self._path,
                    at,
                    "data after the end marker, which readers would never see",
                    "if archives were joined with cat, keep them as separate shards",
                )
            at += len(chunk)


def _refuse(path: Path | str, at: int, what: str, remedy: str) -> NoReturn:
    raise UserError(f"{path}: byte {at}: {what}; {remedy}")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


def _number(raw: bytes) -> int | None:
    """A header number: octal digits, or GNU's base 256 for large files. None if it is neither or
    negative.
    """
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    match = _OCTAL.fullmatch(_text(raw))
    return None if match is None else int(match[1] or b"0", 8)


def _pax_records(body: bytes) -> dict[bytes, bytes] | None:
    """Records ``length key=value\\n`` of a pax header; length counts the whole record. None if
    malformed.
    """
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(body):
        space = body.find(b" ", at, at + 20)
        if space < 0 or not body[at:space].isdigit():
            return None
        end = at + int(body[at:space])
        name, equals, value = body[space + 1 : end - 1].partition(b"=")
        if end > len(body) or body[end - 1 : end] != b"\n" or not name or not equals:
            return None
        records[name] = value
        at = end
    return records
