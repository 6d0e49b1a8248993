"""Encoded pictures to pixels of the one size the model reads."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mmscale.config import MediaConfig
from mmscale.errors import SampleFault

# Named, because Pillow would otherwise try every reader it has, and some (EPS) start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDES_SWAPPED = (5, 6, 7, 8)

# Other pictures are box-averaged to this multiple of the final size before the filtered resize.
_REDUCING_GAP = 2.0


def decode_image(data: bytes, media: MediaConfig) -> NDArray[np.uint8]:
    """Decode ``data`` to RGB, uint8 [3, image_height, image_width].

    The EXIF orientation is applied, transparency shows white, 16-bit grey is scaled to 8 bits, of an
    animation the first frame is taken. The aspect ratio is not kept. Resized with an antialiased bilinear
    filter.

    Raises `SampleFault` when the picture is larger than ``media.max_image_pixels`` (known from its header,
    before pixels are decoded) or cannot be decoded in full.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > media.max_image_pixels:
                raise SampleFault(f"picture of {width}x{height} pixels is over media.max_image_pixels")
            return _to_pixels(image, media)
    except SampleFault:
        raise
    except UnidentifiedImageError as error:
        # Pillow's own text holds a memory address, which would differ from run to run.
        raise SampleFault("not a picture in a supported format") from error
    except Exception as error:  # Pillow's readers raise nearly every built-in type on broken input
        raise SampleFault(f"undecodable picture: {type(error).__name__}: {str(error)[:120]}") from error


def _to_pixels(image: Image.Image, media: MediaConfig) -> NDArray[np.uint8]:
    orientation = _orientation(image)
    size = (media.image_width, media.image_height)
    if orientation in _SIDES_SWAPPED:
        size = (size[1], size[0])
    # Only JPEG acts on this: it leaves out fine frequencies while decoding, but never goes below ``size``.
    # A quarter faster on 640-pixel photographs at 224 pixels, and 43 dB PSNR away from the full decode.
    image.draft(None, size)
    image = _to_rgb_or_rgba(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP)
    if image.mode == "RGBA":
        on_white = Image.new("RGB", size, "white")
        on_white.paste(image, mask=image.getchannel("A"))
        image = on_white
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    assert pixels.shape == (3, media.image_height, media.image_width) and pixels.dtype == np.uint8
    return pixels


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 (upright) where the EXIF block is absent or broken, which spoils no pixel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(image.getexif().get(_ORIENTATION, 1))
        except Exception:
            return 1


def _to_rgb_or_rgba(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise SampleFault("picture of floating-point values, which have no defined range")
    if image.mode.startswith("I"):
        # Pillow's own conversion to 8 bits clips at 255 instead of scaling.
        grey = np.rint(np.clip(np.asarray(image, dtype=np.float32), 0, 65535) / 257)
        image = Image.fromarray(grey.astype(np.uint8))
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
