"""How long an MP3 is by its frames.

An MP3 has no header of its own. Encoders that vary the bit rate put the length into the first
frame; where they do not, libsndfile takes that frame's bit rate for all, and would end the clip too
early.
"""

from __future__ import annotations

from mmscale.data.media.format import ID3_HEADER, id3_size

# Layer III, kilobits a second, by the index in the frame header; 0: free format, which has no
# length.
_BIT_RATES = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44_100, 48_000, 32_000)
# By the header's two version bits: MPEG 2.5, reserved, 2 and 1, which divide the rates by 4, 2 and
# 1.
_DIVISORS = (4, 0, 2, 1)


def layer3_samples(data: bytes) -> int:
    """Samples per channel of the unbroken row of layer III frames (ISO 11172-3, 2.4) after the ID3
    tag.
    """
    samples, at = 0, ID3_HEADER + id3_size(data) if data.startswith(b"ID3") else 0
    while at + 4 <= len(data):
        divisor, bit_rate, rate = (
            _DIVISORS[data[at + 1] >> 3 & 3],
            data[at + 2] >> 4,
            data[at + 2] >> 2 & 3,
        )
        is_frame = data[at] == 0xFF and data[at + 1] & 0xE6 == 0xE2 and divisor
        if not is_frame or bit_rate in (0, 15) or rate == 3:
            break
        in_frame = 1152 if divisor == 1 else 576
        bits = _BIT_RATES[min(divisor, 2)][bit_rate] * 1000
        at += in_frame // 8 * bits // (_RATES[rate] // divisor) + (data[at + 2] >> 1 & 1)
        samples += in_frame
    return samples
