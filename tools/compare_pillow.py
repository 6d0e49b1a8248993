"""Which pictures of a folder we read, beside Pillow: refused, and with other pixels.

    python tools/compare_pillow.py FOLDER…

Every file that begins like a picture of a supported format is decoded by both, upright RGB of 8
bits at its own size. Printed: counts, and each file that only one of the two reads, or that both
read with pixels that differ by more than one level.
"""

from __future__ import annotations

import argparse
import io
import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mmscale.config import MediaConfig
from mmscale.data.media.format import ending_of
from mmscale.data.media.image import decode_image
from mmscale.data.media.image_file import open_picture, orientation
from mmscale.errors import SampleFault

_PICTURES = ("jpg", "png", "webp", "gif", "bmp", "tif")
_LEVELS = 1  # of 255: rounding


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="print one machine-readable result")
    arguments = parser.parse_args()
    result = compare([path for folder in arguments.folders for path in sorted(folder.rglob("*"))])
    if arguments.json:
        print(json.dumps(result))
        return
    print(", ".join(f"{count} {name}" for name, count in sorted(result["counts"].items())))
    for kind, lines in result["lists"].items():
        for line in lines:
            print(f"{kind}: {line}")


def compare(paths: list[Path]) -> dict[str, Any]:
    """Counts by outcome, and the files of every outcome but the two good ones."""
    counts: Counter[str] = Counter()
    lists: dict[str, list[str]] = {}
    for path in paths:
        data = path.read_bytes() if path.is_file() else b""
        if ending_of(data) not in _PICTURES:
            continue
        outcome, reason = _outcome(data)
        counts[outcome] += 1
        if outcome not in ("equal", "refused by both"):
            lists.setdefault(outcome, []).append(f"{path}: {reason}")
    return {"counts": dict(counts), "lists": lists}


def _outcome(data: bytes) -> tuple[str, str]:
    ours = theirs = None
    reason = other = ""
    try:
        ours = _ours(data)
    except SampleFault as fault:
        reason = str(fault)
    try:
        theirs = _pillows(data)
    except Exception as error:  # whatever its readers raise
        other = f"{type(error).__name__}: {error}"
    if ours is None or theirs is None:
        if ours is theirs:
            return "refused by both", reason
        return ("read by Pillow alone", reason) if ours is None else ("read by us alone", other)
    if ours.shape != theirs.shape:
        return "other size", f"{ours.shape} and {theirs.shape}"
    difference = int(np.abs(ours.astype(np.int16) - theirs).max(initial=0))
    return ("equal" if difference <= _LEVELS else "other pixels"), f"up to {difference} of 255"


def _ours(data: bytes) -> NDArray[np.uint8]:
    picture = open_picture(data, MediaConfig())
    width, height = picture.size if orientation(picture) < 5 else picture.size[::-1]
    media = MediaConfig(image_height=height, image_width=width, image_patch=1)
    return decode_image(data, media).transpose(1, 2, 0)


def _pillows(data: bytes) -> NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture: Image.Image = Image.open(io.BytesIO(data))
        picture.load()
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.uint32)
        grey = ((values + 128) // 257).astype(np.uint8)
        grey[values == picture.info.get("transparency", -1)] = 255
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.has_transparency_data:
        over = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(over, mask=over)
        return np.asarray(white)
    return np.asarray(picture.convert("RGB"))


if __name__ == "__main__":
    main()
