"""The model before it is split."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from mmscale.config import Config
from mmscale.model.fusion import FusionTransformer
from mmscale.parallel.activation_checkpointing import set_activation_checkpointing
from mmscale.parallel.compile import compile_blocks
from mmscale.parallel.float8 import use_float8
from mmscale.parallel.ranks import Ranks


def build_model(
    config: Config, ranks: Ranks, place: AbstractContextManager[Any] | torch.device | None = None
) -> FusionTransformer:
    """The model, with what it compiles and computes again, made within ``place``: by default
    without memory.
    """
    with place or torch.device("meta"):
        model = FusionTransformer(config.model, config.media)
    if config.parallel.float8:
        use_float8(model, config.parallel.float8, ranks.device)
    if config.parallel.compile:
        compile_blocks(model, ranks.device)
    set_activation_checkpointing(model, config.parallel.checkpointing)
    return model
