"""Small indexed folders of shards with samples of every kind, and what their index says."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmscale.data.index import build_index as building
from mmscale.data.index.manifest import Manifest
from mmscale.data.ingest.pack import ShardWriter


def picture(width: int, height: int, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (width, height, 0)).save(buffer, format)
    return buffer.getvalue()


def sound(frames: int, rate: int, format: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((frames, 2), np.int16), rate, format=format)
    return buffer.getvalue()


Samples = dict[str, dict[str, bytes]]


def write_shards(folder: Path, samples: Samples, per_shard: int = 2) -> Path:
    with ShardWriter(folder, samples_per_shard=per_shard) as writer:
        for key, fields in samples.items():
            writer.write(key, fields)
    return folder


SAMPLES: Samples = {
    "a": {"png": picture(5, 7), "txt": "数字 one".encode(), "json": b'{"label": 1}'},
    "b": {"jpg": picture(11, 3, "JPEG"), "txt": b""},
    "班/c": {"flac": sound(1000, 8000, "FLAC"), "cls": b"4"},
    "d": {"0.png": picture(2, 2), "1.png": picture(3, 3), "wav": sound(44, 22050), "bin": b"\0\1"},
    "e": {"png": picture(9, 9), "webp": picture(8, 8, "WEBP")},
}


def shard_path(manifest: Manifest, number: int) -> Path:
    place = manifest.place(number)
    return Path(place.base) / place.shard.name


def facts_of(manifest: Manifest, reference: str) -> np.ndarray:
    return manifest.locate(reference).facts(np.arange(len(manifest)))


def present(manifest: Manifest, reference: str) -> list[bool]:
    return (facts_of(manifest, reference)["offset"] > 0).tolist()


def bytes_of(manifest: Manifest, field: str, i: int) -> bytes | None:
    """Payload of a field by the index's own facts."""
    facts = manifest.column(field)[i]
    if not facts["offset"]:
        return None
    raw = shard_path(manifest, manifest.shard_of(i)).read_bytes()
    data = raw[int(facts["offset"]) : int(facts["offset"] + facts["size"])]
    assert zlib.crc32(data) == facts["crc"]
    return data


def edit_json(folder: Path, **changes: Any) -> None:
    path = folder / "index" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def note_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that index passes read whole from now on, in this process."""
    names: list[str] = []
    index = building.index_shard

    def noted(task, told=lambda _: None):
        names.append(task.name)
        return index(task, told)

    monkeypatch.setattr(building, "index_shard", noted)
    return names
