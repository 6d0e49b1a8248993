"""Media made to hurt their reader: headers that promise too much, and little bytes that become
many.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import soundfile
from PIL import Image


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, colours: int = 2
) -> bytes:
    """A PNG of these chunks between header and end."""
    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in parts)


def zeros_deflated(size: int) -> bytes:
    """``size`` zero bytes, deflated without ever being in memory at once."""
    packer, block = zlib.compressobj(9), bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()


def huge_png() -> bytes:
    """60,000 x 60,000 pixels in about 2 KB."""
    return png(60_000, 60_000, (b"IDAT", zlib.compress(bytes(1_900_000), 9)))


def silent_flac(hours: float, rate: int = 8_000) -> bytes:
    buffer = io.BytesIO()
    block = np.zeros(1 << 20, np.int16)
    with soundfile.SoundFile(buffer, "w", rate, 1, format="FLAC") as sound:
        for _ in range(round(hours * 3600 * rate / len(block))):
            sound.write(block)
    return buffer.getvalue()


def tiff(**tags: int) -> bytes:
    """A little-endian grey TIFF of these tags (``t256=...``: image width, and so on), one LONG
    each.
    """
    entries = sorted((int(name[1:]), value) for name, value in tags.items())
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + bytes(64)


def webp_canvas(width: int, height: int) -> bytes:
    """An extended WebP whose header names this canvas, followed by a small picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP")
    head = (
        b"VP8X"
        + struct.pack("<II", 10, 0)
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little")
    )
    body = b"WEBP" + head + buffer.getvalue()[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_screen(width: int, height: int, frame: tuple[int, int] = (1, 1)) -> bytes:
    """A GIF whose logical screen and first frame have these sizes."""
    head = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6)
    return head + b"," + struct.pack("<HHHH", 0, 0, *frame) + b"\0\x02\x02D\x01\0;"


def jpeg_size(width: int, height: int, progressive: bool = False) -> bytes:
    """A small JPEG whose header was changed to this size."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", progressive=progressive)
    data = bytearray(buffer.getvalue())
    at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_many_passes(count: int) -> bytes:
    """A progressive JPEG whose last pass is repeated; each costs a walk over the whole picture."""
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 9).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def jpeg_of_many_scans(count: int) -> bytes:
    """A baseline JPEG of 8,000 x 8,000 pixels in ``count`` scans of one component, all empty."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", subsampling=0)
    data = buffer.getvalue()
    frame = data.index(b"\xff\xc0")
    size = struct.pack(">HH", 8_000, 8_000)
    head = data[: frame + 5] + size + data[frame + 9 : data.index(b"\xff\xda")]
    scans = [
        b"\xff\xda\0\x08\1" + bytes([1 + n % 3, 0 if n % 3 == 0 else 0x11, 0, 63, 0])
        for n in range(count)
    ]
    return head + b"".join(scans) + b"\xff\xd9"


def largest_png(kind: str, side: int = 8_000) -> bytes:
    """A black PNG of as many pixels as are read: grey_16, rgb, rgba or palette (of one bit, with
    transparency).
    """
    depth, colours, samples = {
        "grey_16": (16, 0, 1), "rgb": (8, 2, 3), "rgba": (8, 6, 4), "palette": (1, 3, 1),
    }[kind]  # fmt: skip
    rows = zlib.compressobj(9)
    row = bytes(side * samples * depth // 8 + 1)
    body = b"".join(rows.compress(row) for _ in range(side)) + rows.flush()
    palette = [(b"PLTE", bytes(6)), (b"tRNS", b"\0")] if kind == "palette" else []
    return png(side, side, *palette, (b"IDAT", body), depth=depth, colours=colours)


def id3(size: int, frames: bytes = b"") -> bytes:
    """An ID3v2 tag whose header claims ``size`` bytes."""
    return b"ID3\x04\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + frames


def wav_header(data_bytes: int, rate: int = 16_000, channels: int = 1) -> bytes:
    """A 16-bit WAV header that promises ``data_bytes`` of samples."""
    kind = struct.pack(
        "<HHIIHH", 1, channels, rate, rate * channels * 2 & 0xFFFFFFFF, channels * 2, 16
    )
    return (
        b"RIFF"
        + struct.pack("<I", min(36 + data_bytes, 0xFFFFFFFF))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + kind
        + b"data"
        + struct.pack("<I", data_bytes)
    )
