"""Tar files for tests: ordinary ones, and ones whose header fields were set by hand."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import webdataset

BLOCK = 512
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write_tar(path: Path, members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of plain files, in the order given."""
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def header(
    name: bytes,
    size: bytes | int,
    kind: bytes = b"0",
    magic: bytes = b"ustar\x0000",
    link: bytes = b"",
) -> bytes:
    """One header block with a right checksum, whatever its fields say."""
    size = b"%011o\0" % size if isinstance(size, int) else size
    block = (
        name.ljust(100, b"\0")
        + b"0000644\0"
        + b"0000000\0" * 2
        + size
        + b"00000000000\0"
        + b" " * 8
    )
    block = (block + kind + link.ljust(100, b"\0") + magic).ljust(BLOCK, b"\0")
    assert len(block) == BLOCK
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def member(name: bytes, data: bytes, kind: bytes = b"0", magic: bytes = b"ustar\x0000") -> bytes:
    """Header, payload and padding."""
    return header(name, len(data), kind, magic) + data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")


def patch_header(path: Path, at: int, start: int, value: bytes, fix_checksum: bool = True) -> None:
    """Overwrite bytes of the header at ``at``."""
    raw = bytearray(path.read_bytes())
    raw[at + start : at + start + len(value)] = value
    if fix_checksum:
        block = raw[at : at + BLOCK]
        block[148:156] = b" " * 8
        raw[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    path.write_bytes(raw)


def read_with_webdataset(path: Path) -> dict[str, dict[str, bytes]]:
    """Fields by key, as the webdataset library reads them, nothing decoded."""
    data = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    return {
        sample["__key__"]: {k: v for k, v in sample.items() if not k.startswith("__")}
        for sample in data
    }
