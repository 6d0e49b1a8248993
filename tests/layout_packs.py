"""Splits of layouts packed and indexed, and what their shards then hold."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from packed_sets import Samples, read_shards

from mmscale.config import MediaConfig
from mmscale.data.account import Account
from mmscale.data.ingest.layout import LayoutOptions
from mmscale.data.ingest.open_layout import SourceOptions
from mmscale.data.ingest.pack import pack
from mmscale.data.ingest.sources import open_source

Packed = Samples


def pack_layout(
    name: str,
    source: Path,
    out: Path,
    account: Account | None = None,
    media: MediaConfig | None = None,
    split: str | None = None,
    **options: Any,
) -> dict[str, Packed]:
    """By split and key, in the order of the source, the fields as Python's tarfile reads them. The
    ``split`` that is asked for is ``""``. Every sample is indexed without a problem.
    """
    account, media = account or Account(), media or MediaConfig()
    reading = SourceOptions(layout=name, split=split, reading=LayoutOptions(**options))
    opened = open_source(source, reading, media, out, account)
    manifests = pack(source, out, options=reading, media=media, progress=False)
    packed = {}
    for split, rows in opened.sets.items():
        folder = out / split
        problems = (folder / "index/problems.jsonl").read_text()
        samples = read_shards(folder)
        assert len(manifests[split]) == len(samples) and not problems, problems
        packed[split] = {row.key: samples[row.key] for row in rows.first(len(samples))}
    return packed


def json_of(sample: dict[str, bytes]) -> dict[str, Any]:
    return json.loads(sample["json"])


def noise(frames: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    """int16 [frames, channels] that no codec finds easy."""
    drawn = np.random.default_rng(seed).normal(0, 3000, (frames, channels))
    return drawn.clip(-30000, 30000).astype(np.int16)


def write_sound(path: Path, wave: np.ndarray, rate: int = 16_000) -> bytes:
    """A file in the format of its ending; returns its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".opus":
        soundfile.write(path, wave, rate, format="OGG", subtype="OPUS")
    else:
        soundfile.write(path, wave, rate)
    return path.read_bytes()


def samples_of(data: bytes, dtype: str = "int16") -> np.ndarray:
    """[frames, channels] of an encoded sound."""
    return soundfile.read(io.BytesIO(data), dtype=dtype, always_2d=True)[0]
