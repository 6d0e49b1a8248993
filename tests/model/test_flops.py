"""Estimated costs against what PyTorch counts on the real model."""

import numpy as np
import pytest
import torch
from packings import MEDIA, model_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.model.flops import Flops
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise

CHOICES = [
    {},
    {"image_stem": "cnn", "audio_stem": "rnn"},
    {"fusion": "rnn"},
    {"untied": ["feed_forward", "norm"], "kv_heads": 1},
]


def one_segment(kinds: str):
    """A sequence without padding: a picture or a clip, then text, then an embedding."""
    builder = BatchBuilder(1, 64, MEDIA)
    builder.open_sequence()
    builder.open_segment()
    if "i" in kinds:
        builder.add_image(
            builder.new_image(np.zeros((3, MEDIA.image_height, MEDIA.image_width), np.uint8))
        )
    if "a" in kinds:
        builder.add_clip(
            builder.new_clip(np.zeros((16 * MEDIA.frames_per_token, MEDIA.mel_bins), np.float32))
        )
    at = builder.add_text(np.full(builder.room, 7))
    builder.add_targets(at[:10], np.full(10, 7), 0.1)
    return builder.finish()


@pytest.mark.parametrize("kinds", ["t", "i", "a"])
@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_estimate_is_what_the_model_computes(kinds, choices):
    config = model_config(attention="dense", **choices)
    model = FusionTransformer(config, MEDIA).eval()
    initialise(model, config, 0)
    batch = one_segment(kinds)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hidden = model.hidden(batch)[0]
        model.logits(hidden[batch.target_at_T])
    image, audio = len(batch.image_at_T), len(batch.audio_at_T)
    stems = counter.get_flop_counts()
    counted = counter.get_total_flops()
    for stem, used in ((model.image_stem, image), (model.audio_stem, audio)):
        if not used:  # a blank item runs, and is not the batch's
            counted -= sum(stems[type(stem).__name__].values())
    estimate = Flops(config, MEDIA, config.vocab_size).sequence(
        tokens=64, squares=64**2, image_tokens=image, audio_tokens=audio, targets=10, embeddings=0
    )
    # Convolutions at the edges of tiny pictures and clips read padding, which is counted as work.
    assert counted == pytest.approx(estimate, rel=0.002 if kinds == "t" else 0.02)
