"""A batch of the shape that a config's data will have, made without reading any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmscale import prf
from mmscale.batch import Batch
from mmscale.config import Config, is_media
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.registry import OBJECTIVES

_TEXT = 64  # tokens beside a picture or clip
_PLAIN = 512  # tokens of a text alone
_CLIP = 96  # audio tokens


@dataclass(frozen=True)
class ModalityShares:
    """Shares of the segments that have a picture or a clip; the rest is text."""

    image: float
    audio: float

    @classmethod
    def of(cls, config: Config) -> ModalityShares:
        """By the weights of the config's sets, and what their tasks read."""
        total = sum(data_set.weight for data_set in config.data.sets.values()) or 1.0
        shares = {"image": 0.0, "audio": 0.0}
        for data_set in config.data.sets.values():
            kinds = {
                name.partition(".")[0]
                for task in data_set.tasks
                for name in task.fields()
                if is_media(name)
            }
            for kind in kinds:
                shares[kind] += data_set.weight / total / len(kinds)
        return cls(shares["image"], shares["audio"])


def dry_batch(config: Config, sequences: int) -> Batch:
    """Full sequences of pictures with captions, clips with transcripts, and texts, by the
    `ModalityShares` of the config.
    """
    media, length, mix = config.media, config.data.seq_len, ModalityShares.of(config)
    draws = prf.Draws(prf.derive_key("dry batch", length))
    builder = BatchBuilder(sequences, length, media)
    rows, columns = media.image_grid(media.image_height, media.image_width)
    picture = np.zeros((3, rows * media.image_patch, columns * media.image_patch), np.uint8)
    used = {"image": 0, "audio": 0, "text": 0}
    for _ in range(sequences):
        builder.open_sequence(dropout_key=1)
        while builder.room > 2:
            done = max(1, sum(used.values()))
            missing = {
                "image": mix.image - used["image"] / done,
                "audio": mix.audio - used["audio"] / done,
                "text": (1.0 - mix.image - mix.audio) - used["text"] / done,
            }
            kind = max(missing, key=missing.__getitem__)
            before = builder.room
            _add(builder, kind, picture, config, draws)
            used[kind] += before - builder.room
    return builder.finish()


def _add(
    builder: BatchBuilder, kind: str, picture: np.ndarray, config: Config, draws: prf.Draws
) -> None:
    media = config.media
    size = {
        "image": picture.shape[1] * picture.shape[2] // media.image_patch**2,
        "audio": _CLIP,
        "text": 0,
    }[kind]
    if size + 3 > builder.room:
        kind, size = "text", 0
    builder.open_segment()
    if kind == "image":
        builder.add_image(builder.new_image(picture))
    if kind == "audio":
        frames = np.zeros((size * media.frames_per_token, media.mel_bins), np.float32)
        builder.add_clip(builder.new_clip(frames))
    count = min(_TEXT if kind != "text" else _PLAIN, builder.room - 1)
    ids = (draws.uniforms(count + 1) * (config.model.vocab_size - 1)).astype(np.int64)
    at = builder.add_text(ids[:-1])
    # Text beside media is always taught, as in nearly every run; then what the tasks teach besides.
    used = {task.objective for data_set in config.data.sets.values() for task in data_set.tasks}
    for objective in ("next_token", *sorted(used - {"next_token"})):
        OBJECTIVES[objective].lay_dry(builder, at, ids[1:])
