"""Opening encoded pictures: format, size and orientation are known, and bounded, before a pixel is
decoded.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from mmscale.config import MediaConfig
from mmscale.data.host_error import check_host
from mmscale.data.media.format import ending_of
from mmscale.errors import SampleFault

# Pillow prints what it thinks of odd metadata, a line for each picture; what matters comes as an
# exception.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# The readers are called by name. Image.open would try every one it has, of which some start other
# programs, and has a pixel limit of its own, which is one global number for all threads.
_READERS: dict[str | None, Callable[[io.BytesIO], ImageFile]] = {
    "jpg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tif": TiffImagePlugin.TiffImageFile,
}
_ORIENTATION, _TILE_WIDTH, _TILE_LENGTH = 274, 322, 323
# Each scan of a JPEG of several goes over the whole picture, and takes a few bytes if it changes
# nothing. Encoders write about ten.
_MOST_PASSES = 100
_START_OF_PASS = b"\xff\xda"


def open_picture(data: bytes, media: MediaConfig) -> ImageFile:
    """The picture in ``data``, nothing of it decoded yet; JPEG, PNG, WebP, GIF, BMP and TIFF by
    their first bytes.

    Raises `SampleFault` when it is none of these, its header is broken, or it has more than
    ``media.max_image_pixels``.
    """
    ending = ending_of(data)
    if ending not in _READERS:
        raise SampleFault("not a picture in a supported format (jpg, png, webp, gif, bmp, tiff)")
    with picture_faults():
        if ending == "webp":
            # Its reader allocates the canvas when it opens the file.
            check_size(*_webp_canvas(data), media)
        picture = _READERS[ending](io.BytesIO(data))
        check_size(*picture.size, media)
        if isinstance(picture, TiffImagePlugin.TiffImageFile):
            tags = picture.tag_v2
            # A tile may be larger than the picture, and is decoded whole.
            check_size(int(tags.get(_TILE_WIDTH, 1)), int(tags.get(_TILE_LENGTH, 1)), media)
        if ending == "jpg" and data.count(_START_OF_PASS) > _MOST_PASSES:
            raise SampleFault(f"JPEG with more than {_MOST_PASSES} passes over the picture")
    return picture


@contextmanager
def picture_faults() -> Iterator[None]:
    """What a decoder raises within the block becomes a `SampleFault` of one line, or a `UserError`
    (`check_host`).
    """
    try:
        yield
    except SampleFault:
        raise
    except Exception as error:  # Pillow's readers raise nearly every built-in type on broken input
        check_host(error, "decoding a picture")
        # Without memory addresses, which would differ from run to run.
        text = " ".join(str(error).split()).partition(" object at 0x")[0]
        raise SampleFault(f"broken picture: {type(error).__name__}: {text[:120]}") from error


def orientation(picture: ImageFile) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where it is absent or broken, which spoils no pixel.

    Raises `SampleFault` where the pixels had to be read for it, and are broken.
    """
    if picture.format == "TIFF":
        return 1  # Pillow turns these itself: size and pixels are those of the upright picture
    if picture.format == "PNG":
        # Its Exif may stand behind the pixels, which are read first. A fault of theirs is not one
        # of the Exif; Pillow reports it once, and the next time gives what it has.
        with picture_faults():
            picture.load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            turn = int(picture.getexif().get(_ORIENTATION, 1))
        except Exception:
            return 1
    return turn if 1 <= turn <= 8 else 1


def check_size(width: int, height: int, media: MediaConfig) -> None:
    """Raise `SampleFault` for a picture without pixels, or of more than
    ``media.max_image_pixels``.
    """
    if width < 1 or height < 1:
        raise SampleFault(f"picture of {width}x{height} pixels")
    if width * height > media.max_image_pixels:
        raise SampleFault(
            f"picture of {width}x{height} pixels is over "
            f"media.max_image_pixels={media.max_image_pixels}"
        )


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Width and height by the first chunk (WebP container specification; RFC 9649 for ``VP8L``)."""
    kind, head = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(
            head[8:10], "little"
        ) & 0x3FFF
    raise SampleFault("WebP without a picture")
