"""``model.image_stem: pretrained``: a vision transformer of the `transformers` library.

E is the width of the tower.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmscale.config import MediaConfig, ModelConfig
from mmscale.errors import UserError
from mmscale.model.blocks import RMSNorm
from mmscale.model.stem import ImageStem
from mmscale.model.towers import (
    LARGEST,
    Tower,
    build_tower,
    import_transformers,
    read_facts,
    transformer_flops,
)
from mmscale.registry import IMAGE_STEMS

_KEY = "image_tower_config"


class PretrainedImageStem(Tower, ImageStem):
    """Any vision transformer of `transformers` (CLIP, SigLIP, DINOv2, …), then norm and projection.

    All pictures have the same H and W. Tokens before the patches (class, registers) are left out.
    Position embeddings are interpolated where the pictures are not of the tower's own size.
    """

    def __init__(self, config: ModelConfig, media: MediaConfig) -> None:
        facts = read_facts(config.image_tower_config, _KEY)
        make = import_transformers().AutoModel.from_config
        architecture, tower = build_tower(
            facts["config"], _KEY, make, ("hidden_size", "image_size", "patch_size")
        )
        super().__init__(tower, config.image_tower_trained)
        self._mean, self._std = (_read_channels(facts, name) for name in ("mean", "std"))
        self._own_size = architecture.image_size == media.image_height == media.image_width
        self._tokens = (media.image_height // media.image_patch) * (
            media.image_width // media.image_patch
        )
        self.tower_norm = RMSNorm(architecture.hidden_size, config.norm_eps)
        self.project = nn.Linear(architecture.hidden_size, config.width, bias=False)
        self.norm = RMSNorm(config.width, config.norm_eps)

    def forward(self, image_N3HW: Tensor, size_N2: Tensor | None = None) -> Tensor:
        dtype = self.project.weight.dtype
        mean, std = (
            image_N3HW.new_tensor(x, dtype=torch.float32)[:, None, None]
            for x in (self._mean, self._std)
        )
        pixels = ((image_N3HW.float() / 255.0 - mean) / std).to(dtype)
        settings = {} if self._own_size else {"interpolate_pos_encoding": True}
        hidden_NTE = self.run(pixels, **settings)[:, -self._tokens :]
        return self.norm(self.project(self.tower_norm(hidden_NTE)))

    @staticmethod
    def flops(config: ModelConfig, media: MediaConfig) -> float:
        tower = read_facts(config.image_tower_config, _KEY)["config"]
        rows, columns = media.image_grid(media.image_height, media.image_width)
        # What a vision config of the library leaves out is its default.
        width, hidden = tower.get("hidden_size", 768), tower.get("intermediate_size", 0)
        return transformer_flops(
            width=width,
            layers=tower.get("num_hidden_layers", 12),
            hidden=hidden or tower.get("mlp_ratio", 4) * width,
            positions=rows * columns,
        )


def _read_channels(facts: dict[str, Any], name: str) -> list[float]:
    values = facts.get(name)
    if not (
        isinstance(values, list)
        and len(values) in (1, 3)
        and all(type(value) in (int, float) and abs(value) < LARGEST for value in values)
    ):
        raise UserError(
            f"model.{_KEY}: its {name} is not a number for each channel; name the folder of "
            "another tower"
        )
    return values


IMAGE_STEMS.register("pretrained", PretrainedImageStem)
