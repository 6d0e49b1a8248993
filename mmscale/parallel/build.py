"""How a strategy's model comes to be: made, split, given memory, filled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmscale.config import Config
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.parallel.activation_checkpointing import set_activation_checkpointing
from mmscale.parallel.compile import compile_blocks
from mmscale.parallel.float8 import use_float8
from mmscale.parallel.ranks import Ranks

ModelSplit = Callable[[FusionTransformer], None]


class Builder:
    """The one way to a model for every strategy, in training and in a dry run.

    Training uses this class. A dry run uses `mmscale.capacity.dry_build.DryBuilder`, whose tensors
    have no memory, and refuses a strategy whose model came another way.
    """

    def build(
        self,
        config: Config,
        ranks: Ranks,
        split: ModelSplit | None = None,
        device: torch.device | None = None,
    ) -> FusionTransformer:
        """The model where it stays, with its initial weights.

        Args:
            split: what a strategy does to the model while that has no memory yet, in place.
            device: where the parameters lie; None: where this rank computes.
        """
        model = self.outline(config, ranks, split)
        model.to_empty(device=device or ranks.device)
        self.fill(model, config)
        return model

    def outline(self, config: Config, ranks: Ranks, split: ModelSplit | None) -> FusionTransformer:
        """The model on the meta device, split."""
        model = build_model(config, ranks)
        if split is not None:
            split(model)
        return model

    def fill(self, model: FusionTransformer, config: Config) -> None:
        """Draw the initial weights, in place."""
        initialise(model, config.model, config.seed)

    def replicate(self, module: nn.Module, **settings: Any) -> DistributedDataParallel:
        """``module`` on every rank, whose gradients are summed behind its backward pass."""
        return DistributedDataParallel(module, **settings)


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
