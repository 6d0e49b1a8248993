"""Augmentation is a pure function of config and draws; each change does what its name says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mmscale.config import AugmentConfig, MediaConfig
from mmscale.data.media.augment import (
    CROP_DRAWS,
    augment_image,
    augment_mel,
    augment_wave,
    draw_crop,
    drop_text,
)
from mmscale.data.media.image import Box
from mmscale.prf import Draws, normal, uniform_rows

MEDIA = MediaConfig()
OFF = AugmentConfig()
EVERYTHING = AugmentConfig(
    image_shift=0.2,
    image_rotate=20.0,
    image_scale=0.2,
    image_flip=True,
    image_colour=0.3,
    audio_speed=0.2,
    audio_gain_db=6.0,
    audio_noise=0.1,
    audio_shift_s=0.1,
    mel_warp=0.1,
    mel_masks=2,
    text_drop=0.3,
)


def picture() -> np.ndarray:
    """Grey 40x60 with a red bar in the left half."""
    image = np.full((3, 40, 60), 200, np.uint8)
    image[:, 10:30, 10:20] = np.array([220, 10, 10])[:, None, None]
    return image


def wave() -> np.ndarray:
    time = np.arange(8000) / 16_000
    return (0.3 * np.sin(2 * np.pi * 500 * time)).astype(np.float32)


def mel() -> np.ndarray:
    return normal(5, 60 * 80).reshape(60, 80)


def ids() -> np.ndarray:
    return np.arange(500, dtype=np.int64)


APPLY = {
    "image": lambda cfg, key: augment_image(picture(), cfg, Draws(key)),
    "wave": lambda cfg, key: augment_wave(wave(), MEDIA, cfg, Draws(key)),
    "mel": lambda cfg, key: augment_mel(mel(), cfg, Draws(key)),
    "text": lambda cfg, key: drop_text(ids(), cfg, Draws(key), mask_id=999),
}
ORIGINAL = {"image": picture, "wave": wave, "mel": mel, "text": ids}


@pytest.mark.parametrize("kind", APPLY)
def test_identity_when_everything_is_off(kind):
    assert np.array_equal(APPLY[kind](OFF, 1), ORIGINAL[kind]())


@pytest.mark.parametrize("kind", APPLY)
def test_same_draws_same_result_other_draws_another(kind):
    original = ORIGINAL[kind]()
    first = APPLY[kind](EVERYTHING, 1)
    assert first.shape == original.shape and first.dtype == original.dtype
    assert np.array_equal(first, APPLY[kind](EVERYTHING, 1))
    assert not np.array_equal(first, APPLY[kind](EVERYTHING, 2))
    assert not np.array_equal(first, original)


@pytest.mark.parametrize("kind, function", [("image", augment_image), ("mel", augment_mel)])
def test_inputs_are_not_written_to(kind, function):
    original = ORIGINAL[kind]()
    kept = original.copy()
    original.setflags(write=False)
    function(original, EVERYTHING, Draws(3))
    assert np.array_equal(original, kept)


def crops(
    least: float, height: int = 480, width: int = 640, aspect: float = 1.0, count: int = 400
) -> list[Box]:
    cfg = AugmentConfig(image_crop=least)
    return [
        draw_crop(height, width, aspect, cfg, row)
        for row in uniform_rows(range(count), CROP_DRAWS).tolist()
    ]


def test_crop_off_keeps_everything():
    assert set(crops(0.0)) == {Box(0, 0, 480, 640)}


def test_crop_areas_ratios_and_places():
    boxes = crops(0.1)
    areas = np.array([box.height * box.width for box in boxes]) / (480 * 640)
    ratios = np.array([box.width / box.height for box in boxes])
    assert areas.min() > 0.095 and areas.max() > 0.8
    # Uniform as far as all ratios fit into the picture.
    inside = areas[areas < 0.55]
    assert np.allclose(np.quantile(inside, [0.25, 0.5, 0.75]), [0.2125, 0.325, 0.4375], atol=0.04)
    assert ratios.min() > 0.74 and ratios.max() < 1.35
    assert abs(np.mean(np.log(ratios[areas < 0.55]))) < 0.03
    for box in boxes:
        assert (
            box.top >= 0
            and box.top + box.height <= 480
            and box.left >= 0
            and box.left + box.width <= 640
        )
    assert len({box.left for box in boxes}) > 100 and len({box.top for box in boxes}) > 100


def test_crop_ratio_is_relative_to_the_results():
    ratios = [box.width / box.height for box in crops(0.1, aspect=2.0, width=1000)]
    assert min(ratios) > 1.49 and max(ratios) < 2.7


@pytest.mark.parametrize(
    "height, width, expected",
    [(10, 640, Box(0, 313, 10, 13)), (640, 10, Box(313, 0, 13, 10)), (1, 1, Box(0, 0, 1, 1))],
)
def test_crop_that_never_fits_is_the_largest_from_the_centre(height, width, expected):
    assert set(crops(0.9, height, width, count=20)) == {expected}


def centre_of_bar(image: np.ndarray) -> tuple[float, float, int]:
    """Row and column of the centre of the red pixels, and their number."""
    rows, columns = np.nonzero(image[0].astype(int) - image[1] > 100)
    return float(rows.mean()), float(columns.mean()), len(rows)


def test_shift_moves_by_at_most_its_share():
    offsets = []
    for key in range(20):
        row, column, area = centre_of_bar(APPLY["image"](AugmentConfig(image_shift=0.1), key))
        offsets.append((row - 19.5, column - 14.5))
        assert abs(row - 19.5) <= 4.6 and abs(column - 14.5) <= 6.6
        assert area == pytest.approx(200, abs=20)
    assert np.ptp(offsets, axis=0).min() > 3


def test_scale_changes_the_area_and_rotation_does_not():
    areas = [
        centre_of_bar(APPLY["image"](AugmentConfig(image_scale=0.3), key))[2] for key in range(20)
    ]
    assert (
        min(areas) < 160
        and max(areas) > 240
        and min(areas) > 200 * 0.45
        and max(areas) < 200 * 1.75
    )
    turned = [
        centre_of_bar(APPLY["image"](AugmentConfig(image_rotate=30), key)) for key in range(20)
    ]
    assert all(area == pytest.approx(200, abs=25) for _, _, area in turned)
    distances = [np.hypot(row - 19.5, column - 29.5) for row, column, _ in turned]
    assert np.allclose(distances, 15, atol=0.7)
    assert np.ptp([row for row, _, _ in turned]) > 5


def test_what_moves_in_has_the_corners_colour():
    cfg = AugmentConfig(image_shift=0.3, image_rotate=40, image_scale=0.4)
    grey = np.full((3, 40, 60), 200, np.uint8)
    grey[:, 0, 0] = 0  # one odd corner does not count
    for key in range(10):
        assert (augment_image(grey, cfg, Draws(key)) == 200).mean() > 0.99


def test_flip_mirrors_about_half():
    flipped = [
        np.array_equal(APPLY["image"](AugmentConfig(image_flip=True), key), picture())
        for key in range(40)
    ]
    assert 8 < sum(flipped) < 32
    mirrored = next(key for key in range(40) if not flipped[key])
    assert np.array_equal(
        APPLY["image"](AugmentConfig(image_flip=True), mirrored), picture()[:, :, ::-1]
    )


def test_colour_keeps_grey_grey():
    grey = np.full((3, 8, 8), 100, np.uint8)
    levels = set()
    for key in range(10):
        changed = augment_image(grey, AugmentConfig(image_colour=0.5), Draws(key))
        assert (changed == changed[0, 0, 0]).all() and 50 <= changed[0, 0, 0] <= 150
        levels.add(int(changed[0, 0, 0]))
    assert len(levels) > 5


def strongest(clip: np.ndarray) -> float:
    """Hertz of the strongest sine."""
    return float(
        np.abs(np.fft.rfft(clip * np.hanning(len(clip)), 160_000)).argmax() * 16_000 / 160_000
    )


def test_speed_changes_pitch_within_reach():
    pitches = [strongest(APPLY["wave"](AugmentConfig(audio_speed=0.2), key)) for key in range(20)]
    assert min(pitches) < 450 and max(pitches) > 550
    assert min(pitches) > 398 and max(pitches) < 602


def test_gain_is_in_decibels():
    gains = [
        APPLY["wave"](AugmentConfig(audio_gain_db=6), key).max() / wave().max() for key in range(20)
    ]
    assert 0.5 < min(gains) < 0.7 and 1.4 < max(gains) < 2.0


def test_noise_is_relative_to_the_clip():
    for scale in (0.01, 1.0):
        quiet = np.float32(scale) * wave()
        noisy = augment_wave(quiet, MEDIA, AugmentConfig(audio_noise=0.5), Draws(1))
        ratio = (noisy - quiet).std() / quiet.std()
        assert ratio == pytest.approx(0.5 * Draws(1).uniforms(4)[2], rel=0.05)


def test_shift_leaves_silence():
    cfg = AugmentConfig(audio_shift_s=0.1)
    for key in range(10):
        moved = APPLY["wave"](cfg, key)
        offset = round((2 * Draws(key).uniforms(4)[3] - 1) * 1600)
        expected = np.zeros_like(moved)
        if offset >= 0:
            expected[offset:] = wave()[: len(moved) - offset]
        else:
            expected[:offset] = wave()[-offset:]
        assert np.array_equal(moved, expected)


@pytest.mark.parametrize("samples", [0, 1, 2, 100])
def test_very_short_clips(samples):
    changed = augment_wave(wave()[:samples], MEDIA, EVERYTHING, Draws(6))
    assert changed.shape == (samples,) and np.isfinite(changed).all()


def test_mel_warp_moves_bands():
    ridge = np.zeros((10, 80), np.float32)
    ridge[:, 40] = 1.0
    peaks = [
        augment_mel(ridge, AugmentConfig(mel_warp=0.2), Draws(key)).argmax(axis=1)[0]
        for key in range(20)
    ]
    assert min(peaks) < 37 and max(peaks) > 43
    assert min(peaks) >= 32 and max(peaks) <= 48


def test_mask_widths():
    cfg = AugmentConfig(mel_masks=1, mel_mask_bins=12, mel_mask_frames=40)
    widths = []
    for key in range(60):
        masked = augment_mel(mel(), cfg, Draws(key)) != mel()
        widths.append((int(masked.all(axis=0).sum()), int(masked.all(axis=1).sum())))
    bands, frames = zip(*widths, strict=True)
    assert min(bands) == 0 and max(bands) == 12
    # A quarter of the 60 frames, although the config would allow 40.
    assert min(frames) == 0 and max(frames) == 15


def test_masks_hold_the_mean_and_short_clips_survive():
    cfg = AugmentConfig(mel_masks=3)
    masked = augment_mel(mel(), cfg, Draws(1))
    changed = masked[masked != mel()]
    assert len(changed) and (changed == mel().mean()).all()
    assert augment_mel(mel()[:1, :2], cfg, Draws(1)).shape == (1, 2)


def test_text_drop_share():
    dropped = drop_text(
        np.arange(20_000, dtype=np.int64), AugmentConfig(text_drop=0.25), Draws(1), mask_id=-7
    )
    assert (dropped == -7).mean() == pytest.approx(0.25, abs=0.02)
    kept = dropped != -7
    assert np.array_equal(dropped[kept], np.arange(20_000)[kept])


def test_switching_one_change_on_leaves_the_others_as_they_were():
    shift = AugmentConfig(image_shift=0.2)
    both = dataclasses.replace(shift, image_flip=True)
    for key in range(8):
        alone, together = APPLY["image"](shift, key), APPLY["image"](both, key)
        assert np.array_equal(alone, together) or np.array_equal(alone, together[:, :, ::-1])
