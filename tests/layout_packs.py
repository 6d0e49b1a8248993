"""Splits of layouts packed and indexed, and what their shards then hold."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from mmscale.config import MediaConfig
from mmscale.data.account import Account
from mmscale.data.index.build_index import build_index
from mmscale.data.ingest.layout import LayoutOptions, SplitRows
from mmscale.data.ingest.shard_writer import ShardFile
from mmscale.data.ingest.sources import RowSource
from mmscale.data.ingest.table_row import RowReader
from mmscale.registry import LAYOUTS

Packed = dict[str, dict[str, bytes]]


def pack_layout(
    name: str,
    source: Path,
    out: Path,
    account: Account | None = None,
    media: MediaConfig | None = None,
    **options: Any,
) -> dict[str, Packed]:
    """By split and key, the fields as Python's tarfile reads them; every sample is indexed without
    a problem.
    """
    account, media = account or Account(), media or MediaConfig()
    packed = {}
    for split, rows in LAYOUTS[name].splits(source, LayoutOptions(**options), account).items():
        assert isinstance(rows, SplitRows)
        reader = RowReader(rows.folder, media)
        samples = RowSource(
            source, (reader.row(row.where, dict(row.columns), row.key) for row in rows.rows)
        )
        folder = out / (split or "all")
        folder.mkdir(parents=True)
        shard = ShardFile(folder / "shard-000000.tar")
        with samples.load(samples.portions[0], None, folder, False) as loaded:
            for number in samples.portions[0]:
                shard.add(loaded[number].encode(media))
        shard.finish()
        manifest = build_index(folder, media, progress=False)
        problems = (folder / "index/problems.jsonl").read_text()
        assert len(manifest) == len(samples.portions[0]) and not problems, problems
        packed[split] = read_shard(folder / "shard-000000.tar")
    return packed


def read_shard(path: Path) -> Packed:
    samples: Packed = {}
    with tarfile.open(path) as archive:
        for info in archive:
            directory, _, base = info.name.rpartition("/")
            stem, field = base.split(".", 1)
            stream = archive.extractfile(info)
            assert stream is not None
            samples.setdefault(f"{directory}/{stem}".lstrip("/"), {})[field] = stream.read()
    return samples


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
