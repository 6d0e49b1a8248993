"""A JPEG without what libjpeg warns of though it takes nothing from the picture.

libjpeg-turbo's short interface takes any warning for an error, and so do we: most mean lost pixels.
These do not: parameters of a scan that a sequential picture does not use, an odd revision of JFIF,
profiles that are broken or stand twice, bytes between segments. They are mended in a copy, which is
then decoded as strictly as any: what else is wrong with the picture is still refused. (ITU-T T.81,
annex B: markers; T.871: JFIF.)
"""

from __future__ import annotations

# What libjpeg says of what is mended here.
MENDABLE = (
    "Invalid SOS parameters",
    "unknown JFIF revision",
    "bad ICC marker",
    "extraneous bytes before marker",
    "Unknown Adobe color transform",
)

_SOI, _SOS, _EOI = 0xD8, 0xDA, 0xD9
_SEQUENTIAL = (0xC0, 0xC1)
_APP0, _ADOBE, _COMMENT = 0xE0, 0xEE, 0xFE
_APPLICATION = range(0xE0, 0xF0)
_JFIF = b"JFIF\0"


def mended_jpeg(data: bytes) -> bytes | None:
    """A copy of a JPEG with its header in order; None where the header cannot be followed.

    Of application data JFIF and Adobe's are kept, which say how colours are stored. Everything from
    the first scan on is as it was, but for the scan's unused parameters.
    """
    if data[:2] != bytes([0xFF, _SOI]):
        return None
    out, at, sequential = bytearray(data[:2]), 2, False
    while True:
        at = data.find(b"\xff", at)  # whatever lies between two segments is passed over
        if at < 0 or at + 4 > len(data):
            return None
        marker = data[at + 1]
        if marker in (0x00, 0xFF):
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if marker == _EOI or length < 2 or end > len(data):
            return None
        body = bytearray(data[at + 4 : end])
        if marker == _SOS:
            if sequential and len(body) >= 4:
                body[-3:] = bytes([0, 63, 0])
            return bytes(out + data[at : at + 4] + body) + data[end:]
        if marker in _SEQUENTIAL:
            sequential = True
        if marker == _APP0 and body.startswith(_JFIF) and len(body) >= 7:
            body[5:7] = bytes([1, 1])
        if marker in (_APP0, _ADOBE) or marker not in (*_APPLICATION, _COMMENT):
            out += data[at : at + 4] + body
        at = end
