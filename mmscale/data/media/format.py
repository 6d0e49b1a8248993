"""The format of encoded media by their first bytes; the names that come with them prove nothing."""

from __future__ import annotations

# Signatures at byte 0, by the ending under which a member of that format is stored.
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpg"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"II+\0", "tif"),
    (b"MM\0+", "tif"),
    (b"fLaC", "flac"),
)
_RIFF = {b"WEBP": "webp", b"WAVE": "wav"}
ID3_HEADER = 10


def ending_of(data: bytes) -> str | None:
    """``png``, ``jpg``, ``webp``, ``gif``, ``bmp``, ``tif``, ``wav``, ``flac``, ``ogg``, ``opus``
    or ``mp3``.

    None for anything else. Only the head is looked at: a broken file of a known format has that
    format.
    """
    for signature, ending in _SIGNATURES:
        if data.startswith(signature):
            return ending
    if data[:4] in (b"RIFF", b"RF64", b"RIFX"):
        return _RIFF.get(data[8:12])
    if data.startswith(b"OggS"):
        # The first packet follows a page header of 27 bytes and one byte for each of its segments.
        return "opus" if data[28:36] == b"OpusHead" else "ogg"
    # Two letters alone would match too much: the reserved words of the header are zero.
    if data.startswith(b"BM") and len(data) >= 14 and data[6:10] == bytes(4):
        return "bmp"
    if data.startswith(b"ID3"):
        return "flac" if data[ID3_HEADER + id3_size(data) :].startswith(b"fLaC") else "mp3"
    return "mp3" if _is_mp3_frame(data) else None


def id3_size(data: bytes) -> int:
    """Length of an ID3v2 tag without its header: four bytes of seven bits."""
    size = 0
    for byte in data[6:ID3_HEADER]:
        size = size << 7 | byte & 0x7F
    return size


def _is_mp3_frame(data: bytes) -> bool:
    """Whether an MPEG audio frame header of layer III stands at the start (ISO 11172-3,
    2.4.1.3).
    """
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return False
    version, layer = data[1] >> 3 & 3, data[1] >> 1 & 3
    bitrate, rate = data[2] >> 4, data[2] >> 2 & 3
    return version != 1 and layer == 1 and bitrate != 15 and rate != 3
