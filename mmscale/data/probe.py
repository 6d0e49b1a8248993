"""What planning needs to know of one field, from its header: sizes, durations, characters.

Nothing is decoded; limits are checked here so that nothing over them is ever decoded later.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import soundfile
from PIL import Image, UnidentifiedImageError

from mmscale.config import MediaConfig
from mmscale.data.audio import MAX_CHANNELS, MAX_RATE
from mmscale.data.image import FORMATS
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


def kind_of(field: str) -> Kind | None:
    """Kind of a field by its last ending (``0.png`` is an image); None for fields nothing reads."""
    return _KINDS.get(field.rpartition(".")[2])


def probe(kind: Kind, data: bytes, media: MediaConfig) -> tuple[int, int]:
    """Header facts ``(a, b)`` of one field, each below 2**32.

    Image: width and height in pixels, before any EXIF turn. Audio: samples per channel and sample rate in Hz.
    Text, json and cls: characters and 0.

    Raises `SampleFault` when the header cannot be read, breaks a limit of ``media``, or text is not UTF-8 or
    not JSON.
    """
    if len(data) > media.max_file_bytes:
        raise SampleFault(f"{len(data)} bytes are over media.max_file_bytes={media.max_file_bytes}")
    if kind == "image":
        facts = _image(data, media)
    elif kind == "audio":
        facts = _audio(data, media)
    else:
        facts = _text(data, parse=kind == "json")
    if max(facts) >= 2**32:
        raise SampleFault(f"{max(facts)} in the header is beyond 32 bits")
    return facts


def _image(data: bytes, media: MediaConfig) -> tuple[int, int]:
    try:
        with _without_pillow_limit(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise SampleFault("not a picture in a supported format") from None
    except Exception as error:  # Pillow's header readers raise nearly every built-in type on broken input
        raise SampleFault(f"unreadable picture header: {type(error).__name__}: {str(error)[:120]}") from None
    if width < 1 or height < 1:
        raise SampleFault(f"picture of {width}x{height} pixels")
    if width * height > media.max_image_pixels:
        raise SampleFault(
            f"picture of {width}x{height} pixels is over media.max_image_pixels={media.max_image_pixels}"
        )
    return width, height


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Our limit instead of Pillow's, which warns at one fixed size and raises at twice that."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _audio(data: bytes, media: MediaConfig) -> tuple[int, int]:
    try:
        info = soundfile.info(io.BytesIO(data))
    except (RuntimeError, OSError, ValueError, TypeError) as error:  # SoundFileError is a RuntimeError
        # soundfile's own text holds the address of the stream, which differs from run to run.
        reason = getattr(error, "error_string", None) or type(error).__name__
        raise SampleFault(f"unreadable sound header: {reason}") from None
    if info.frames < 1:
        raise SampleFault("sound without samples")
    if not 1 <= info.samplerate <= MAX_RATE or info.channels > MAX_CHANNELS:
        raise SampleFault(
            f"sound at {info.samplerate} Hz with {info.channels} channels; "
            f"at most {MAX_RATE} Hz and {MAX_CHANNELS} channels are read"
        )
    if info.frames > media.max_audio_s * info.samplerate:
        seconds = info.frames / info.samplerate
        raise SampleFault(f"sound of {seconds:.1f} s is over media.max_audio_s={media.max_audio_s:g}")
    return info.frames, info.samplerate


def _text(data: bytes, parse: bool) -> tuple[int, int]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SampleFault(f"not UTF-8 at byte {error.start}") from None
    if parse:
        try:
            json.loads(text)
        except RecursionError:
            raise SampleFault("JSON nested too deep") from None
        except ValueError as error:
            raise SampleFault(f"not valid JSON: {str(error)[:120]}") from None
    return len(text), 0
