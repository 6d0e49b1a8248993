"""What planning needs to know of one field, from its header: sizes, durations, characters.

Nothing is decoded; limits are checked here so that nothing over them is ever decoded later.
"""

from __future__ import annotations

from typing import Literal

from mmscale.config import MediaConfig
from mmscale.data.index.json_field import parse_json
from mmscale.data.media.audio import open_sound
from mmscale.data.media.image_file import open_picture
from mmscale.errors import SampleFault

Kind = Literal["image", "audio", "text", "json", "cls"]

# In the order in which they are preferred where a sample has several.
ENDINGS: dict[Kind, tuple[str, ...]] = {
    "image": ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"),
    "audio": ("wav", "flac", "ogg", "mp3", "opus"),
    "text": ("txt", "text"),
    "json": ("json",),
    "cls": ("cls",),
}
_KINDS: dict[str, Kind] = {ending: kind for kind, endings in ENDINGS.items() for ending in endings}

# Parsed, JSON takes up to 25 times its bytes.
MAX_TEXT_BYTES = 4_000_000


def kind_of(field: str) -> Kind | None:
    """Kind of a field by its last ending (``0.png`` is an image); None for fields nothing reads."""
    return _KINDS.get(field.rpartition(".")[2])


def probe(kind: Kind, data: bytes, media: MediaConfig) -> tuple[int, int]:
    """Header facts ``(a, b)`` of one field, each below 2**32.

    Image: width and height in pixels, before any EXIF turn. Audio: samples per channel and sample
    rate in Hz. Text, json and cls: characters and 0.

    Raises `SampleFault` when the header cannot be read, breaks a limit of ``media``, or text is not
    UTF-8 or not JSON.
    """
    if len(data) > media.max_file_bytes:
        raise SampleFault(f"{len(data)} bytes are over media.max_file_bytes={media.max_file_bytes}")
    if kind == "image":
        facts = open_picture(data, media).size
    elif kind == "audio":
        with open_sound(data, media) as sound:
            facts = sound.frames, sound.samplerate
    else:
        assert kind in ("text", "cls", "json"), f"{kind}: no kind of field"
        facts = _text(data, parse=kind == "json")
    if max(facts) >= 2**32:
        raise SampleFault(f"{max(facts)} in the header is beyond 32 bits")
    return facts


def _text(data: bytes, parse: bool) -> tuple[int, int]:
    if len(data) > MAX_TEXT_BYTES:
        raise SampleFault(f"text of {len(data)} bytes; at most {MAX_TEXT_BYTES} are read")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SampleFault(f"not UTF-8 at byte {error.start}") from None
    if parse:
        parse_json(text)
    return len(text), 0
