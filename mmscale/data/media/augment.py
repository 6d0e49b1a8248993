"""Random changes to training samples. Every function is pure: same input, config and draws, same
output.

Each function makes its draws in a fixed order whether or not a change is switched on, so switching
one on or off leaves the others as they were. With an all-zero `AugmentConfig` every function
returns its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import soxr
from numpy.typing import NDArray
from PIL import Image

from mmscale.config import AugmentConfig, MediaConfig
from mmscale.data.media.image import Box
from mmscale.prf import Draws

# Factors stay above this, so that no config can turn a picture or a clip inside out.
_SMALLEST_FACTOR = 0.1
_LARGEST_TIME_MASK = 0.25
# Random resized crop: the most a crop is stretched, and how often one is drawn until it fits.
_MOST_STRETCH = 4 / 3
_LOG_STRETCH = math.log(_MOST_STRETCH)
_CROP_TRIES = 10
CROP_DRAWS = 2 * _CROP_TRIES + 2
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def draw_crop(
    height: int, width: int, aspect: float, cfg: AugmentConfig, numbers: Sequence[float]
) -> Box:
    """The part of a picture of ``height`` x ``width`` pixels that is kept; all of it with
    ``image_crop`` 0.

    Its share of the area is uniform between ``image_crop`` and 1; its width / height is log-uniform
    between 3/4 and 4/3 of ``aspect``, that of the result. If ten draws do not fit, the largest part
    from the centre within these ratios (Szegedy et al., "Going deeper with convolutions", 2015;
    torchvision's RandomResizedCrop, which has ``aspect`` 1).

    Args:
        numbers: `CROP_DRAWS` draws in [0, 1).
    """
    if not cfg.image_crop:
        return Box(0, 0, height, width)
    for n in range(0, 2 * _CROP_TRIES, 2):
        area = height * width * (cfg.image_crop + (1.0 - cfg.image_crop) * numbers[n])
        ratio = aspect * math.exp((2.0 * numbers[n + 1] - 1.0) * _LOG_STRETCH)
        if area * ratio > (width + 1) ** 2 or area > ratio * (height + 1) ** 2:
            continue  # what the next lines would find, without their square roots
        kept_height, kept_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < kept_height <= height and 0 < kept_width <= width:
            top = int(numbers[n + 2] * (height - kept_height + 1))
            left = int(numbers[n + 3] * (width - kept_width + 1))
            return Box(top, left, kept_height, kept_width)
    kept_height = min(height, max(1, round(width / (aspect / _MOST_STRETCH))))
    kept_width = min(width, max(1, round(height * (aspect * _MOST_STRETCH))))
    return Box((height - kept_height) // 2, (width - kept_width) // 2, kept_height, kept_width)


def augment_image(image: NDArray[np.uint8], cfg: AugmentConfig, draws: Draws) -> NDArray[np.uint8]:
    """Shift, turn, resize, mirror and recolour uint8 [3, H, W]; the same shape comes back.

    What moves in from outside has the median colour of the picture's four corners.
    """
    if not (
        cfg.image_shift or cfg.image_rotate or cfg.image_scale or cfg.image_flip or cfg.image_colour
    ):
        return image
    shift_x, shift_y, turn, size, mirror, *colour = draws.uniforms(8)
    if cfg.image_shift or cfg.image_rotate or cfg.image_scale:
        _, height, width = image.shape
        image = _affine(
            image,
            shift=(
                _around(0.0, cfg.image_shift, shift_x) * width,
                _around(0.0, cfg.image_shift, shift_y) * height,
            ),
            degrees=_around(0.0, cfg.image_rotate, turn),
            zoom=_factor(cfg.image_scale, size),
        )
    if cfg.image_flip and mirror < 0.5:
        image = np.ascontiguousarray(image[:, :, ::-1])
    if cfg.image_colour:
        image = _recolour(image, *(_around(1.0, cfg.image_colour, draw) for draw in colour))
    return image


def augment_wave(
    wave: NDArray[np.float32], media: MediaConfig, cfg: AugmentConfig, draws: Draws
) -> NDArray[np.float32]:
    """Change speed (and pitch), loudness, noise and position of float32 [n]; the same length comes
    back.

    A clip that becomes longer loses equally at both ends; one that becomes shorter gets silence at
    both.
    """
    speed, gain, noise, shift = draws.uniforms(4)
    samples = len(wave)
    if cfg.audio_speed:
        factor = _factor(cfg.audio_speed, speed)
        faster = soxr.resample(wave, media.sample_rate * factor, media.sample_rate, quality="HQ")
        wave = _place(faster, (samples - len(faster)) // 2, samples)
    if cfg.audio_gain_db:
        wave = wave * np.float32(10.0 ** (_around(0.0, cfg.audio_gain_db, gain) / 20.0))
    if cfg.audio_shift_s:
        wave = _place(
            wave, round(_around(0.0, cfg.audio_shift_s, shift) * media.sample_rate), samples
        )
    # After the shift, so that digital zeros do not give away the silence it leaves.
    if cfg.audio_noise and samples:
        level = math.sqrt(float(np.mean(np.square(wave, dtype=np.float64))))
        wave = wave + np.float32(noise * cfg.audio_noise * level) * draws.normals(samples)
    return wave


def augment_mel(mel: NDArray[np.float32], cfg: AugmentConfig, draws: Draws) -> NDArray[np.float32]:
    """Warp and mask a log-mel spectrogram, float32 [frames, bins]; the same shape comes back.

    The mel axis is stretched as another length of the vocal tract would (Jaitly and Hinton, "Vocal
    tract length perturbation improves speech recognition", 2013). Bands and stretches of time are
    set to the clip's mean (SpecAugment: Park et al., 2019), at most a quarter of the clip by one
    time mask.
    """
    frames, bins = mel.shape
    warp = draws.uniform()
    if cfg.mel_warp:
        mel = _stretch_bins(mel, _factor(cfg.mel_warp, warp))
    if cfg.mel_masks:
        fill = mel.mean()
        mel = mel.copy()
        for _ in range(cfg.mel_masks):
            start, stop = _span(draws, bins, min(cfg.mel_mask_bins, bins))
            mel[:, start:stop] = fill
            start, stop = _span(
                draws, frames, min(cfg.mel_mask_frames, int(frames * _LARGEST_TIME_MASK))
            )
            mel[start:stop] = fill
    return mel


def drop_text(
    ids: NDArray[np.int64], cfg: AugmentConfig, draws: Draws, mask_id: int
) -> NDArray[np.int64]:
    """Replace each of the token ids, int64 [n], by ``mask_id`` with probability
    ``cfg.text_drop``.
    """
    if not cfg.text_drop:
        return ids
    return np.where(draws.uniforms(len(ids)) < cfg.text_drop, np.int64(mask_id), ids)


def _around(centre: float, reach: float, draw: float) -> float:
    """``draw`` in [0, 1) as a number within ``reach`` of ``centre``."""
    return centre + reach * (2.0 * float(draw) - 1.0)


def _factor(reach: float, draw: float) -> float:
    return max(_SMALLEST_FACTOR, _around(1.0, reach, draw))


def _affine(
    image: NDArray[np.uint8], shift: tuple[float, float], degrees: float, zoom: float
) -> NDArray[np.uint8]:
    """Turn and zoom about the centre, then shift by pixels to the right and down."""
    _, height, width = image.shape
    background = np.median(image[:, [0, 0, -1, -1], [0, -1, 0, -1]], axis=1)
    centre_x, centre_y = width / 2, height / 2
    cosine, sine = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
    # Pillow asks where each pixel of the result comes from: the inverse of the motion.
    from_x, from_y = centre_x + shift[0], centre_y + shift[1]
    coefficients = (
        *(cosine, sine, centre_x - cosine * from_x - sine * from_y),
        *(-sine, cosine, centre_y + sine * from_x - cosine * from_y),
    )
    moved = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).transform(
        (width, height),
        Image.Transform.AFFINE,
        coefficients,
        resample=Image.Resampling.BILINEAR,
        fillcolor=tuple(int(value) for value in background),
    )
    return np.ascontiguousarray(np.asarray(moved).transpose(2, 0, 1))


def _recolour(
    image: NDArray[np.uint8], brightness: float, contrast: float, saturation: float
) -> NDArray[np.uint8]:
    """Scale the level, the distance from the mean grey, and the distance of each pixel from its own
    grey.
    """
    pixels = image.astype(np.float32) * np.float32(brightness)
    grey = np.tensordot(_LUMA, pixels, axes=1)
    mean = grey.mean()
    pixels = mean + np.float32(contrast) * (grey + np.float32(saturation) * (pixels - grey) - mean)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _place(wave: NDArray[np.float32], offset: int, samples: int) -> NDArray[np.float32]:
    """``samples`` of silence with ``wave`` from position ``offset`` on; what lies outside is
    lost.
    """
    placed = np.zeros(samples, dtype=np.float32)
    start, stop = max(0, offset), min(samples, offset + len(wave))
    if start < stop:
        placed[start:stop] = wave[start - offset : stop - offset]
    return placed


def _stretch_bins(mel: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Move the content of band ``b`` to band ``b * factor``, with linear interpolation between
    bands.
    """
    top = mel.shape[1] - 1
    source = np.minimum(np.arange(top + 1) / factor, top)
    below = np.floor(source).astype(np.int64)
    above = np.minimum(below + 1, top)
    share = (source - below).astype(np.float32)
    return mel[:, below] * (1 - share) + mel[:, above] * share


def _span(draws: Draws, length: int, widest: int) -> tuple[int, int]:
    """A stretch of 0 to ``widest`` places somewhere in ``range(length)``."""
    width = draws.integer(0, widest + 1)
    start = draws.integer(0, length - width + 1)
    return start, start + width
