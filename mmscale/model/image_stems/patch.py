"""``model.image_stem: patch``: each square of pixels, times one matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from mmscale.config import MediaConfig, ModelConfig
from mmscale.model.blocks import RMSNorm
from mmscale.model.stem import ImageStem, centred_pixels
from mmscale.registry import IMAGE_STEMS


class PatchStem(ImageStem):
    """Linear projection of square patches (ViT: Dosovitskiy et al., 2020)."""

    width_rules: ClassVar[Mapping[str, str]] = {"project.": "input", "norm.": "input"}

    def __init__(self, config: ModelConfig, media: MediaConfig) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, config.width, media.image_patch, stride=media.image_patch)
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, image_N3HW: Tensor, size_N2: Tensor | None = None) -> Tensor:
        x = self.project(centred_pixels(image_N3HW, self.project.weight.dtype))
        return self.norm(x.flatten(2).transpose(1, 2))

    @staticmethod
    def flops(config: ModelConfig, media: MediaConfig) -> float:
        return 2.0 * 3 * media.image_patch**2 * config.width


IMAGE_STEMS.register("patch", PatchStem)
