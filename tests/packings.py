"""Random packed batches for tests of the model: text, pictures and clips in every mixture."""

import numpy as np

from mmscale import prf
from mmscale.batch import Batch
from mmscale.config import MediaConfig, ModelConfig
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.data.objectives.contrastive import add_embedding
from mmscale.data.objectives.next_token import add_targets
from mmscale.data.special_tokens import EMBED

MEDIA = MediaConfig(image_height=16, image_width=24, image_patch=8, mel_bins=20)
IMAGE_TOKENS = 2 * 3
VOCABULARY = 64


def model_config(**changes) -> ModelConfig:
    sizes = {
        "width": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "hidden": 48,
        "stem_width": 8,
    }
    return ModelConfig(**{**sizes, "embed_dim": 16, "vocab_size": VOCABULARY, **changes})


def random_batch(seed: int, sequences: int = 3, length: int = 160, kinds: str = "tia") -> Batch:
    """Segments of the given kinds (t text, i image, a audio; none: padding) with targets and
    embeddings.
    """
    draws = prf.Draws(prf.derive_key("packing", seed))
    builder = BatchBuilder(sequences, length, MEDIA)
    for row in range(sequences):
        builder.open_sequence(dropout_key=row + 1)
        while kinds:
            kind = kinds[draws.integer(0, len(kinds))]
            words, size = draws.integer(1, 12), draws.integer(1, 12)
            need = words + 1 + {"t": 0, "i": IMAGE_TOKENS, "a": size}[kind]
            if need > builder.room:
                break
            add_segment(builder, kind, words, size, draws)
    return builder.finish()


def add_segment(builder: BatchBuilder, kind: str, words: int, size: int, draws: prf.Draws) -> None:
    """One segment: media of ``size`` audio tokens if any, ``words`` supervised words, an
    embedding.
    """
    builder.open_segment()
    if kind == "i":
        pixels = draws.uniforms(3 * MEDIA.image_height * MEDIA.image_width) * 255
        picture = pixels.astype(np.uint8).reshape(3, MEDIA.image_height, MEDIA.image_width)
        builder.add_image(builder.new_image(picture))
    if kind == "a":
        frames = size * MEDIA.frames_per_token - draws.integer(0, MEDIA.frames_per_token)
        builder.add_clip(
            builder.new_clip(draws.normals(frames * MEDIA.mel_bins).reshape(frames, MEDIA.mel_bins))
        )
    ids = (5 + draws.uniforms(words + 1) * (VOCABULARY - 5)).astype(np.int64)
    at = builder.add_text(ids[:-1])
    add_targets(builder, at, ids[1:], 0.01)
    (embed,) = builder.add_text([EMBED])
    add_embedding(
        builder, int(embed), slot=0, group=builder.sequence, task=0, side="tia".index(kind),
        match=draws.integer(0, 3), weight=0.1,
    )  # fmt: skip
