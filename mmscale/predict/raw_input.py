"""Pictures and sounds as people hold them (paths, bytes, arrays) to the bytes of an encoded file.

Everything goes through the decoders that training uses, so that limits, resizing and resampling are
the same; arrays are encoded without loss first.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mmscale.config import MediaConfig
from mmscale.errors import UserError

ImageInput = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]
AudioInput = str | os.PathLike[str] | bytes | tuple[NDArray[np.floating], int]

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def image_bytes(image: ImageInput, media: MediaConfig) -> bytes:
    """An encoded picture from a path, bytes, a PIL image, or uint8 [H, W], [H, W, 3 or 4] or [3, H,
    W].

    Raises:
        UserError: a file that cannot be read or is over ``media.max_file_bytes``, a broken picture,
            or another kind of value.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return _file_bytes(Path(image), media)
    if isinstance(image, np.ndarray):
        image = _array_to_image(image)
    if not isinstance(image, Image.Image):
        raise UserError(
            f"image: got a {type(image).__name__}; give a path, bytes, a PIL image or a uint8 array"
        )
    buffer = io.BytesIO()
    try:
        # Encoding again would lose the mark that says how to turn it.
        upright = ImageOps.exif_transpose(image)
        if upright.mode not in _PNG_MODES:
            upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
        upright.save(buffer, format="PNG", compress_level=0)
    except (OSError, SyntaxError, ValueError) as error:  # PIL reads a file's pixels only now
        raise UserError(f"image: the picture cannot be read ({error}); give a whole one") from None
    return buffer.getvalue()


def audio_bytes(audio: AudioInput, media: MediaConfig) -> bytes:
    """An encoded sound from a path, bytes, or (float [n] or [n, channels] of full scale 1.0, rate
    in Hz).

    Raises:
        UserError: a file that cannot be read or is over ``media.max_file_bytes``, or another kind
            of value.
    """
    if isinstance(audio, bytes):
        return audio
    if isinstance(audio, str | os.PathLike):
        return _file_bytes(Path(audio), media)
    if not (isinstance(audio, tuple) and len(audio) == 2 and isinstance(audio[0], np.ndarray)):
        raise UserError(
            f"audio: got a {type(audio).__name__}; give a path, bytes, or a pair (float array, "
            "rate in Hz)"
        )
    wave, rate = audio
    if wave.dtype.kind != "f" or wave.ndim not in (1, 2):
        raise UserError(
            f"audio: the array is {wave.dtype} of {wave.ndim} axes; "
            "give floats of full scale 1.0, [n] or [n, channels]"
        )
    buffer = io.BytesIO()
    try:
        soundfile.write(buffer, wave.astype(np.float32), int(rate), format="WAV", subtype="FLOAT")
    # SoundFileError is a RuntimeError.
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"audio: {wave.shape} samples at {rate} Hz cannot be used ({error}); check the pair"
        ) from None
    return buffer.getvalue()


def _file_bytes(path: Path, media: MediaConfig) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(media.max_file_bytes + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if len(data) > media.max_file_bytes:
        raise UserError(
            f"{path}: larger than media.max_file_bytes={media.max_file_bytes}; give a smaller file"
        )
    return data


def _array_to_image(array: NDArray[Any]) -> Image.Image:
    if array.dtype == np.uint8 and array.size:
        if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)):
            return Image.fromarray(np.ascontiguousarray(array))
        if array.ndim == 3 and array.shape[0] == 3:
            return Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))
    raise UserError(
        f"image: the array is {array.dtype} {list(array.shape)}; "
        "give uint8 [H, W], [H, W, 3], [H, W, 4] or [3, H, W]"
    )
