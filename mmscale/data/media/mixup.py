"""Blending pictures of one sequence with each other, for classification by a linear head.

mixup (Zhang et al., 2018) averages two pictures, CutMix (Yun et al., 2019) pastes a rectangle of
one into the other; the target becomes both classes, by the share each has of the pixels. Partner
and share are drawn under the key of (seed, set, epoch, sample), so a batch remains a function of
(manifest, seed, step).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmscale.config import AugmentConfig
from mmscale.prf import Draws


@dataclass(frozen=True, eq=False)
class MixedImage:
    """A sample's blended picture, uint8 [3, H, W], of which ``share`` of the pixels are its own."""

    picture: NDArray[np.uint8]
    partner: int
    share: float


def mix_images(
    pictures: Sequence[NDArray[np.uint8] | None],
    kinds: Sequence[Hashable],
    draws: Sequence[Draws],
    augment: AugmentConfig,
) -> list[MixedImage | None]:
    """What becomes of every sample's picture, uint8 [3, H, W]; None: it stays as it is.

    A partner is drawn among the other samples of the same kind; if it has no picture, or one of
    another size, there is no blending. With both mixup and CutMix on, each is used for half of the
    samples.
    """
    mixes: list[MixedImage | None] = []
    for number, (picture, kind, own) in enumerate(zip(pictures, kinds, draws, strict=True)):
        partners = [n for n, other in enumerate(kinds) if n != number and other == kind]
        if picture is None or not partners:
            mixes.append(None)
            continue
        partner = partners[own.integer(0, len(partners))]
        other = pictures[partner]
        if other is None or other.shape != picture.shape:
            mixes.append(None)
            continue
        if augment.cutmix and (not augment.mixup or own.uniform() < 0.5):
            blended, share = _paste(picture, other, _beta(augment.cutmix, own), own)
        else:
            share = _beta(augment.mixup, own)
            mean = share * picture.astype(np.float32) + (1.0 - share) * other.astype(np.float32)
            blended = np.rint(mean).astype(np.uint8)
        mixes.append(MixedImage(blended, partner, share))
    return mixes


def _paste(
    picture: NDArray[np.uint8], other: NDArray[np.uint8], share: float, draws: Draws
) -> tuple[NDArray[np.uint8], float]:
    """A rectangle of the picture's aspect, ``1 - share`` of its area before it is cut at the edges,
    from ``other``.
    """
    height, width = picture.shape[1:]
    side = (1.0 - share) ** 0.5
    row, column = draws.uniform(0, height), draws.uniform(0, width)
    top, bottom = (round(min(max(row + sign * side * height / 2, 0), height)) for sign in (-1, 1))
    left, right = (round(min(max(column + sign * side * width / 2, 0), width)) for sign in (-1, 1))
    pasted = picture.copy()
    pasted[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return pasted, 1.0 - (bottom - top) * (right - left) / (height * width)


def _beta(a: float, draws: Draws) -> float:
    """One number of the distribution Beta(a, a), a ≤ 1, by rejection (Jöhnk, 1964)."""
    while True:
        x, y = draws.uniform() ** (1.0 / a), draws.uniform() ** (1.0 / a)
        if 0.0 < x + y <= 1.0:
            return x / (x + y)
