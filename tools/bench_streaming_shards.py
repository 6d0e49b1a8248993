"""The data of `bench_streaming`: shards of real samples of any size that decode in no time."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from mmscale.config import Config, MediaConfig, SetConfig, TaskConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.data.tokenizer import Tokenizer

SIDE = 64  # pixels
_WORDS = tuple("abcdefghijklmnop")
_COMMENT = 60_000  # bytes in one segment


def write_set(folder: Path, *, samples: int, sample_bytes: int, shards: int) -> None:
    """``folder/NNNNNN.tar`` and their index, and ``folder/../tokenizer.json``.

    A sample is a small JPEG, with bytes that no decoder looks at to fill ``sample_bytes``, and a
    caption. No two are equal.
    """
    picture = _small_jpeg()
    with ShardWriter(folder, samples_per_shard=-(-samples // shards)) as writer:
        for number in range(samples):
            filling = hashlib.shake_128(number.to_bytes(8, "big")).digest(
                max(0, sample_bytes - len(picture))
            )
            fields = {"jpg": _with_comments(picture, filling), "txt": caption(number).encode()}
            writer.write(f"{number:08d}", fields)
    Tokenizer.train([caption(number) for number in range(1000)], 300).save(tokenizer_file(folder))
    build_index(folder, MediaConfig(), progress=False)


def tokenizer_file(folder: Path) -> Path:
    """Beside the folder of the shards."""
    return folder.parent / "tokenizer.json"


def caption(number: int) -> str:
    """Of sample ``number``."""
    return " ".join(_WORDS[: 3 + number * 7 % (len(_WORDS) - 3)]) + f" {number}"


def config_of(shards: str, tokenizer: Path) -> Config:
    """The config that reads the set, packed into sequences of 128 tokens, 16 a step."""
    config = Config()
    config.media = MediaConfig(image_height=SIDE, image_width=SIDE, image_patch=16)
    config.data.tokenizer.file = str(tokenizer)
    config.data.seq_len, config.data.sequences, config.data.workers = 128, 16, 1
    tasks = [TaskConfig(input=["image"], target="text")]
    config.data.sets = {"streamed": SetConfig(shards=[shards], tasks=tasks)}
    return config


def _small_jpeg() -> bytes:
    buffer = io.BytesIO()
    ramp = np.add.outer(np.arange(SIDE), np.arange(SIDE)).astype(np.uint8)
    Image.fromarray(np.stack([ramp, ramp, ramp], axis=-1)).save(buffer, "JPEG")
    return buffer.getvalue()


def _with_comments(jpeg: bytes, filling: bytes) -> bytes:
    """A JPEG with ``filling`` in comments (ITU-T T.81, B.2.4.5) behind its first marker."""
    parts = [filling[at : at + _COMMENT] for at in range(0, len(filling), _COMMENT)]
    comments = [b"\xff\xfe" + (len(part) + 2).to_bytes(2, "big") + part for part in parts]
    return b"".join([jpeg[:2], *comments, jpeg[2:]])
