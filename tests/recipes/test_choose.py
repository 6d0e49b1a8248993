"""The rules of recipes: every fit is a config that training accepts, and follows the samples."""

from __future__ import annotations

import itertools

import pytest

from mmscale.config_file import config_from_tree
from mmscale.recipes.choose import fit
from mmscale.recipes.training_facts import TrainingFacts

PICTURES = [(0.0, 0.0), (8.0, 8.0), (28.0, 28.0), (32.0, 100.0), (640.0, 480.0), (4000.0, 90.0)]
SOUNDS = [(0.0, 0), (0.6, 8000), (29.5, 44_100)]
TEXTS = [(0.0, 0), (18.0, 180_000), (3000.0, 30_000_000)]


@pytest.mark.parametrize("samples", [1, 300, 20_000, 400_000, 50_000_000])
def test_every_fit_is_a_config(samples: int) -> None:
    for (width, height), (seconds, rate), (characters, size) in itertools.product(
        PICTURES, SOUNDS, TEXTS
    ):
        facts = TrainingFacts(
            samples=samples, width=width, height=height, seconds=seconds, rate=rate,
            characters=characters, text_bytes=size,
        )  # fmt: skip
        tree = fit(facts)
        config = config_from_tree(tree, "fit", rules=False)
        assert config.train.optimizer.warmup_steps < config.train.steps
        assert config.train.checkpoint_every <= config.train.steps
        if width:
            media = config.media
            tokens = media.image_height * media.image_width / media.image_patch**2
            assert media.image_height % media.image_patch == 0 == media.image_width % 4
            assert 16 <= tokens <= 256 and tokens < config.data.seq_len
        if seconds:
            assert config.media.max_audio_s >= seconds


def test_more_samples_are_seen_less_often_by_a_larger_model() -> None:
    small, large = (
        config_from_tree(fit(TrainingFacts(samples=samples, width=32, height=32)), "fit", False)
        for samples in (1000, 200_000)
    )
    assert small.model.width < large.model.width
    assert small.train.steps / 1000 > large.train.steps / 200_000


def test_a_wide_picture_stays_wide() -> None:
    media = fit(TrainingFacts(samples=10, width=400, height=120))["media"]
    assert media["image_width"] > 1.8 * media["image_height"]
