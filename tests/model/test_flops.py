"""Estimated costs against what PyTorch counts on the real model."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from packings import MEDIA, model_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmscale.config import MediaConfig, ModelConfig
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.data.objectives.next_token import add_targets
from mmscale.model.flops import Flops
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.strict_yaml import read_yaml

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
    add_targets(builder, at[:10], np.full(10, 7), 0.1)
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
        model.logits(hidden[batch.objectives["next_token"]["at_T"]])
    image, audio = len(batch.image_at_T), len(batch.audio_at_T)
    stems = counter.get_flop_counts()
    counted = counter.get_total_flops()
    for stem, used in ((model.image_stem, image), (model.audio_stem, audio)):
        if not used:  # a blank item runs, and is not the batch's
            counted -= sum(stems[type(stem).__name__].values())
    estimate = Flops(config, MEDIA, config.vocab_size).sequence(
        {
            "tokens": 64,
            "squares": 64**2,
            "image_tokens": image,
            "audio_tokens": audio,
            "predictions": 10,
        }
    )
    # Convolutions at the edges of tiny pictures and clips read padding, which is counted as work.
    assert counted == pytest.approx(estimate, rel=0.002 if kinds == "t" else 0.02)


# Of a token of the stems, by size: a plan deals sequences to ranks by them, so they never change.
STEMS = {
    "tiny": {"patch": 294912, "cnn": 5050368, "conv": 1497600, "rnn": 1903104},
    "small": {"patch": 786432, "cnn": 34439168, "conv": 10342400, "rnn": 13225984},
    "base": {"patch": 1179648, "cnn": 76824576, "conv": 23132160, "rnn": 29620224},
    "1b": {"patch": 3145728, "cnn": 78790656, "conv": 28047360, "rnn": 74184704},
    "3b": {"patch": 4718592, "cnn": 140181504, "conv": 51486720, "rnn": 155295744},
    "10b": {"patch": 7864320, "cnn": 144375808, "conv": 61972480, "rnn": 350330880},
}


@pytest.mark.parametrize("size", STEMS)
def test_the_stems_of_every_size_cost_the_same_as_ever(size):
    sizes = read_yaml((ROOT / f"configs/model/{size}.yaml").read_text())
    for image, audio in (("patch", "conv"), ("cnn", "rnn")):
        config = ModelConfig(**sizes | {"image_stem": image, "audio_stem": audio})
        costs = Flops(config, MediaConfig(), 512)
        assert costs.per_image_token == STEMS[size][image]
        assert costs.per_audio_token == STEMS[size][audio]


def test_a_tower_costs_what_its_architecture_says():
    """ViT-B/16 at 224 pixels sees 196 patches; Whisper large-v2's encoder 1,500 positions."""
    vision = {"model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12}
    speech = {"d_model": 1280, "encoder_layers": 32, "encoder_ffn_dim": 5120}
    config = model_config(
        image_stem="pretrained",
        image_tower_config=json.dumps({"config": vision}),
        audio_stem="pretrained",
        audio_tower_config=json.dumps({"config": speech}),
    )
    media = MediaConfig(image_height=224, image_width=224, image_patch=16, frames_per_token=8)
    costs = Flops(config, media, 512)
    assert costs.per_image_token == 12 * (24 * 768**2 + 4 * 768 * 196)
    assert costs.per_audio_token == 4 * 32 * (24 * 1280**2 + 4 * 1280 * 1500)


def test_an_unknown_mixer_is_not_taken_for_attention():
    with pytest.raises(AssertionError, match=r"model\.fusion=mamba: its FLOPs are not known"):
        Flops(model_config(fusion="mamba"), MEDIA, 512)
