"""Two small sets, train and test, with every fault that the report must find planted in them."""

from __future__ import annotations

import io
import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmscale import prf
from mmscale.config import MediaConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.ingest.pack import ShardWriter

RATE = 8000
HOSTILE = "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>\u202e{{ 7 * 7 }}"
LABELS = ["cat", "dog", "bird"]
TITLES = ["两会代表热议教育改革", "Stocks rise again", "东京の天気", "Погода завтра", "서울의 날씨"]

_FOLDER = tempfile.TemporaryDirectory(prefix="mmscale-inspect-")


@dataclass(frozen=True)
class Inspected:
    """The page, what `inspect` returned, and the table it wrote."""

    html: Path
    result: dict[str, Any]
    table: Path

    def warning(self, code: str) -> dict[str, Any]:
        """The one warning of this code."""
        (warning,) = [warning for warning in self.result["warnings"] if warning["code"] == code]
        return warning


def picture(number: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A smooth picture that looks like no other."""
    draws = prf.Draws(prf.derive_key("picture", number))
    coarse = (draws.uniforms(7 * 6 * 3) * 255).astype(np.uint8).reshape(6, 7, 3)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def wave(number: int, seconds: float = 0.4) -> np.ndarray:
    """A noisy tone at about -20 dB of full scale that sounds like no other."""
    draws = prf.Draws(prf.derive_key("wave", number))
    time = np.arange(int(RATE * seconds)) / RATE
    return (
        0.1 * np.sin(2 * np.pi * (200 + 10 * number) * time) + 0.01 * draws.normals(len(time))
    ).astype("f4")


def sound(samples: np.ndarray, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    # Whole numbers, because the formats round fractions differently.
    steps = np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
    soundfile.write(file, steps, RATE, format=kind, subtype="PCM_16")
    return file.getvalue()


def sample(number: int, **changes: bytes | None) -> dict[str, bytes]:
    """Fields of a sound sample; ``changes`` by ending, None leaves one out."""
    title = f"{TITLES[number % len(TITLES)]} {number}"
    fields: dict[str, bytes | None] = {
        "png": encode(picture(number)),
        "wav": sound(wave(number)),
        "txt": title.encode(),
        "json": json.dumps({"label": LABELS[number % 3], "title": title}).encode(),
    }
    return {ending: data for ending, data in (fields | changes).items() if data is not None}


def write_planted(folder: Path) -> None:
    """``folder``/train of 30 samples without fault, ``folder``/test of 12 with one each and 10
    without.
    """
    with ShardWriter(folder / "train", samples_per_shard=20) as writer:
        for number in range(30):
            writer.write(f"t{number:02d}", sample(number))
    jpeg = encode(picture(60, (640, 480)), "JPEG")
    clipped = np.clip(wave(67) * 30, -1.0, 1.0)
    shrunk = encode(picture(1).resize((60, 50)), "JPEG")
    planted = {
        "same-picture": sample(50, png=encode(picture(0)), json=b'{"label": "dog"}'),
        "like-picture": sample(51, png=None, jpg=shrunk),
        "same-text": sample(52, txt=b"Stocks rise again 1"),
        "like-text": sample(53, txt=b"stocks RISE, again... 6!"),
        "same-sound": sample(54, wav=None, flac=sound(wave(4), "FLAC"), json=b'{"label": "dog"}'),
        "broken": sample(60, png=None, jpg=jpeg[: len(jpeg) // 2]),
        "blank": sample(61, png=encode(Image.new("RGB", (64, 64), "white"))),
        "tiny": sample(62, png=encode(picture(62, (12, 40)))),
        "silent": sample(63, wav=sound(np.zeros(RATE))),
        "quiet": sample(64, wav=sound(wave(64) * 0.01)),
        "clipped": sample(67, wav=sound(clipped)),
        "empty": sample(66, txt=b" \n"),
        "<script>window": sample(
            68, txt=HOSTILE.encode(), json=b'{"label": "<script>window.pwned = 1</script>"}'
        ),
        "unreadable": sample(69, json=b'{"label": '),
    }
    with ShardWriter(folder / "test", samples_per_shard=20) as writer:
        for number in range(40, 50):
            writer.write(f"e{number}", sample(number))
        for key, fields in planted.items():
            writer.write(key, fields)
    for name in ("train", "test"):
        build_index(folder / name, MediaConfig(), progress=False)


@cache
def planted_sets() -> Path:
    """Folder of the planted sets, train and test; written once and removed when the tests end."""
    folder = Path(_FOLDER.name) / "sets"
    write_planted(folder)
    return folder


@cache
def planted_report() -> Inspected:
    """The report on the planted sets; made once."""
    pytest.importorskip("pandas", reason="the extra `tables` is not installed")
    from mmscale.inspect.run import inspect

    html, table = Path(_FOLDER.name) / "report.html", Path(_FOLDER.name) / "table.parquet"
    sources = [str(planted_sets() / "train"), str(planted_sets() / "test")]
    return Inspected(html, inspect(sources, html, table=table, workers=0, progress=False), table)
