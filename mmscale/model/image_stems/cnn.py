"""``model.image_stem: cnn``: convolutions that halve a picture until a patch is one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmscale.config import MediaConfig, ModelConfig
from mmscale.model.blocks import RMSNorm
from mmscale.model.stem import ImageStem, centred_pixels
from mmscale.registry import IMAGE_STEMS


class ChannelNorm(nn.Module):
    """RMSNorm over the channels at each place of a [N, C, …] map; never across places, so padding
    cannot leak.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def _inside(size_N2: Tensor, x: Tensor, stride: int) -> Tensor:
    """1 where a map [N, C, h, w] of pictures of ``size_N2`` pixels is real, 0 where it is padding:
    [N, 1, h, w].
    """
    rows = torch.arange(x.shape[2], device=x.device) * stride < size_N2[:, :1]
    columns = torch.arange(x.shape[3], device=x.device) * stride < size_N2[:, 1:]
    return (rows[:, None, :, None] & columns[:, None, None, :]).to(x.dtype)


class CnnStem(ImageStem):
    """Strided 3x3 convolutions down to one vector per patch (early convolutions: Xiao et al.,
    2021).

    What lies outside a padded picture stays zero, as the convolutions' own padding.
    """

    width_rules: ClassVar[Mapping[str, str]] = {
        "first.": "input",
        "norms.": "input",
        "convs.": "input",
        "project.": "input",
        "norm.": "input",
    }

    def __init__(self, config: ModelConfig, media: MediaConfig) -> None:
        super().__init__()
        halvings = media.image_patch.bit_length() - 1
        channels = [min(config.stem_width << n, 8 * config.stem_width) for n in range(halvings + 1)]
        self.first = nn.Conv2d(3, channels[0], 3, padding=1)
        self.norms = nn.ModuleList(ChannelNorm(c, config.norm_eps) for c in channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[n], channels[n + 1], 3, stride=2, padding=1) for n in range(halvings)
        )
        self.project = nn.Conv2d(channels[-1], config.width, 1)
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, image_N3HW: Tensor, size_N2: Tensor | None = None) -> Tensor:
        def blank(x: Tensor, stride: int) -> Tensor:
            return x if size_N2 is None else x * _inside(size_N2, x, stride)

        x = self.first(blank(centred_pixels(image_N3HW, self.first.weight.dtype), 1))
        for halving, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=False)):
            x = conv(blank(F.silu(norm(x)), 1 << halving))
        x = self.project(F.silu(self.norms[-1](x)))
        return self.norm(x.flatten(2).transpose(1, 2))

    @staticmethod
    def flops(config: ModelConfig, media: MediaConfig) -> float:
        pixels, channels = media.image_patch**2, config.stem_width
        cost = 2.0 * 9 * 3 * channels * pixels
        while pixels > 1:
            pixels //= 4
            wider = min(2 * channels, 8 * config.stem_width)
            cost += 2.0 * 9 * channels * wider * pixels
            channels = wider
        return cost + 2.0 * channels * config.width


IMAGE_STEMS.register("cnn", CnnStem)
