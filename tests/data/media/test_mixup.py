"""mixup and CutMix: pixels and shares are what the definitions say, and nothing but the key
decides.
"""

import numpy as np
import pytest

from mmscale import prf
from mmscale.config import AugmentConfig, Config, SetConfig, TaskConfig
from mmscale.data.media.mixup import mix_images
from mmscale.errors import UserError


def pictures(count=6, shape=(3, 12, 20)):
    return [np.full(shape, 10 * n, np.uint8) for n in range(count)]


def mix(augment, images=None, kinds=None, seed=0):
    images = pictures() if images is None else images
    draws = [prf.Draws(prf.derive_key("mix", seed, n)) for n in range(len(images))]
    return mix_images(images, kinds or [1] * len(images), draws, augment)


def test_mixup_is_the_weighted_mean():
    for number, blend in enumerate(mix(AugmentConfig(mixup=0.4))):
        assert blend is not None and blend.partner != number and 0 <= blend.share <= 1
        expected = blend.share * 10 * number + (1 - blend.share) * 10 * blend.partner
        assert abs(blend.picture.astype(float) - expected).max() <= 0.5


def test_cutmix_pastes_a_rectangle_of_the_share_it_reports():
    for seed in range(20):
        for number, blend in enumerate(mix(AugmentConfig(cutmix=1.0), seed=seed)):
            own = blend.picture[0] == 10 * number
            assert (blend.picture == blend.picture[0]).all(), "all colours alike"
            assert own.mean() == pytest.approx(blend.share)
            pasted = np.argwhere(~own)
            if len(pasted):
                height, width = np.ptp(pasted, axis=0) + 1
                assert height * width == len(pasted), "a rectangle"
                assert set(np.unique(blend.picture)) <= {10 * number, 10 * blend.partner}


def test_shares_follow_the_beta_distribution():
    shares = [
        blend.share for seed in range(300) for blend in mix(AugmentConfig(mixup=0.5), seed=seed)
    ]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.5 + 1)), abs=0.01)


def test_partners_are_of_one_kind_and_size():
    images = [*pictures(4), np.zeros((3, 8, 8), np.uint8)]
    for seed in range(20):
        mixes = mix(AugmentConfig(mixup=1.0), images, kinds=["a", "a", "b", "a", "a"], seed=seed)
        assert mixes[2] is None and mixes[4] is None, (
            "no other of its kind; of another size than any"
        )
        assert {blend.partner for blend in mixes if blend} <= {0, 1, 3}


def test_a_picture_that_is_broken_leaves_the_others_as_they_were():
    for seed in range(20):
        whole, broken = (
            mix(AugmentConfig(mixup=1.0, cutmix=1.0), images, seed=seed)
            for images in (
                pictures(),
                [None if n == 2 else picture for n, picture in enumerate(pictures())],
            )
        )
        assert broken[2] is None
        for before, after in zip(whole, broken, strict=True):
            if after is not None:
                assert (before.partner, before.share) == (after.partner, after.share)
                assert np.array_equal(before.picture, after.picture)
        assert all(
            whole[n].partner == 2 for n, blend in enumerate(broken) if blend is None and n != 2
        )


def test_the_key_decides():
    def bytes_of(seed):
        return [
            blend.picture.tobytes()
            for blend in mix(AugmentConfig(mixup=1.0, cutmix=1.0), seed=seed)
        ]

    assert bytes_of(1) == bytes_of(1) != bytes_of(2)


def test_only_a_linear_head_can_be_taught_a_blend():
    config = Config()
    task = TaskConfig(input=["image"], target="json.label")
    config.data.sets = {
        "a": SetConfig(shards=["x"], tasks=[task], augment=AugmentConfig(mixup=0.2))
    }
    with pytest.raises(UserError, match=r"tasks\[0\] \(next_token\) cannot learn from"):
        config.check()
    task.objective = "classify"
    config.check()
    config.data.sets["a"].augment.mixup = 3.0
    with pytest.raises(UserError, match=r"mixup: 3 is above 1"):
        config.check()
