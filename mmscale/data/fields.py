"""What a field of a sample is, by its ending; and its header facts, read without decoding it."""

from __future__ import annotations

import io
import json

import soundfile
from PIL import Image

from mmscale.config import MediaConfig
from mmscale.errors import SampleFault

IMAGE_ENDINGS = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff")
AUDIO_ENDINGS = ("wav", "flac", "ogg", "mp3", "opus")
_KINDS = {
    **dict.fromkeys(IMAGE_ENDINGS, "image"),
    **dict.fromkeys(AUDIO_ENDINGS, "audio"),
    "txt": "text",
    "text": "text",
    "json": "json",
    "cls": "cls",
}
_MAX_FACT = 0xFFFFFFFF


def kind_of(field: str) -> str | None:
    """image, audio, text, json or cls by the last ending of ``field``; None for anything else."""
    return _KINDS.get(field.rpartition(".")[2])


def probe(kind: str, data: bytes, media: MediaConfig) -> tuple[int, int]:
    """The facts a and b of `manifest.FACTS`, from headers only for pictures and sound.

    Raises:
        SampleFault: unreadable, over a limit of ``media``, or text that is not UTF-8.
    """
    if kind == "image":
        return probe_image(data, media)
    if kind == "audio":
        return probe_audio(data, media)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SampleFault(f"not UTF-8 at byte {error.start}; save the text as UTF-8") from None
    if kind == "json":
        try:
            json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SampleFault(f"not valid JSON ({type(error).__name__})") from None
    return len(text), 0


def probe_image(data: bytes, media: MediaConfig) -> tuple[int, int]:
    """(width, height) in pixels. Raises `SampleFault`."""
    # Our own limit is checked below, before any decoding; Pillow's is a warning that depends on a global.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
    except Exception as error:  # Pillow's plugins raise all kinds on damaged files
        raise SampleFault(f"not a readable picture ({type(error).__name__})") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    if width * height > media.max_image_pixels:
        raise SampleFault(f"{width} x {height} pixels, more than media.max_image_pixels={media.max_image_pixels}")
    return width, height


def probe_audio(data: bytes, media: MediaConfig) -> tuple[int, int]:
    """(samples a channel, rate in Hz). Raises `SampleFault`."""
    try:
        info = soundfile.info(io.BytesIO(data))
    except Exception as error:
        raise SampleFault(f"not a readable clip ({type(error).__name__})") from None
    if info.frames <= 0 or info.samplerate <= 0 or info.frames > _MAX_FACT:
        raise SampleFault(f"the header claims {info.frames} samples at {info.samplerate} Hz")
    if info.frames > media.max_audio_s * info.samplerate:
        raise SampleFault(f"{info.frames / info.samplerate:.1f} s long, more than media.max_audio_s={media.max_audio_s:g}")
    return info.frames, info.samplerate
