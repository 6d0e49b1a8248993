"""One small interface for every way to split a model over ranks.

In every strategy the weights, the optimiser's moments and the summed gradients are fp32; ``bf16``
means that forward and backward see bf16 copies of the weights. The gradient of a step is the *sum*
over micro-batches and ranks, because every loss is already divided by the whole step's count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from mmscale.batch import Batch
from mmscale.config import ZERO_STAGES, Config, ParallelConfig
from mmscale.config.parallel import check_parallel
from mmscale.errors import UserError
from mmscale.model.grad_cache import ContrastTerms
from mmscale.parallel.ranks import Ranks

COMPUTE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Strategy(Protocol):
    """A model that lies on its devices and knows how to sum gradients over the ranks."""

    name: str
    model: nn.Module
    parameters: int  # of the whole model

    def forward_backward(
        self, batch: Batch, last: bool, contrast: ContrastTerms | None = None
    ) -> dict[str, Tensor]:
        """Losses of a micro-batch (detached float32 scalars); gradients are added to the
        parameters'.

        ``contrast`` replaces the batch's own contrastive loss. ``last`` marks the step's last
        micro-batch, after which the gradients are summed over all ranks.
        """

    def embeddings(self, batch: Batch) -> dict[str, Tensor]:
        """`FusionTransformer.forward` with ``embeddings_only``, without gradients."""

    def update(
        self, step: int, lr: float, should_skip: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Clip the gradients, update weights, moments and averages, forget the gradients.

        ``should_skip`` gets the gradients' norm, and returns 1 if nothing may be changed, else 0.
        Returns both: float32 scalars, equal on every rank.
        """

    def state_tensors(self) -> dict[str, Tensor]:
        """Weights, moments and averages for a checkpoint, by name: fp32, whole or sharded; names
        are of no strategy.
        """

    def restore(self, load: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        """Let ``load`` fill the state tensors, as they were after so many ``updates``."""


def to_device(batch: Batch, config: ParallelConfig, ranks: Ranks) -> Batch:
    """The batch where this rank computes; on CPUs, where padding costs what tokens cost, without
    that at its end.

    A GPU's compiled code is for one length; so is the division of positions over ranks.
    """
    if ranks.device.type == "cpu" and config.context == 1:
        batch = batch.trimmed()
    return batch.to(ranks.device)


def check_strategy(config: Config, name: str) -> None:
    """Refuse what the run asks for and the strategy ``name`` does not do, before anything is built.

    Raises `UserError` naming the key and the remedy.
    """
    parallel, adversarial = config.parallel, config.train.adversarial
    check_parallel(replace(parallel, strategy=name))
    if name in ZERO_STAGES:
        from mmscale.parallel.zero import check_zero

        check_zero(config, name)
    if adversarial.on and name in ZERO_STAGES:  # whose engine does not give gradients of inputs
        raise UserError(
            f"train.adversarial: not with parallel.strategy={name}; use one of single, ddp, fsdp"
        )
    if adversarial.on and parallel.context > 1:
        raise UserError(f"train.adversarial: not with parallel.context={parallel.context}; use 1")


def check_initial_weights(config: Config, name: str) -> None:
    """Refuse to begin a run with others' weights where the strategy ``name`` cannot; it can go on
    with such a run.
    """
    for key in ("image_tower", "audio_tower", "init_from"):
        if name in ZERO_STAGES and getattr(config.model, key):
            raise UserError(
                f"model.{key}: {name} cannot begin with others' weights; begin with "
                "parallel.strategy=fsdp, and go on "
                "with any strategy from its first checkpoint"
            )


def build_strategy(config: Config, ranks: Ranks) -> Strategy:
    """The strategy ``config.parallel.strategy`` names, with the model built and its weights drawn.

    Raises:
        UserError: the strategy does not fit the number of ranks, or what the run asks for.
    """
    compute = COMPUTE_TYPES[config.train.precision]
    name = config.parallel.strategy
    if name == "auto":
        name = "fsdp" if ranks.world > 1 else "single"
    if name == "single" and ranks.world > 1:
        raise UserError(
            f"parallel.strategy=single, but the launcher started {ranks.world} ranks; use fsdp, or "
            "start one process"
        )
    check_strategy(config, name)
    if name in ZERO_STAGES:
        from mmscale.parallel.zero import ZeroStrategy

        return ZeroStrategy(config, ranks, compute)
    if name == "ddp":
        from mmscale.parallel.ddp import DdpStrategy

        return DdpStrategy(config, ranks, compute)
    if name == "fsdp":
        from mmscale.parallel.fsdp import FsdpStrategy

        return FsdpStrategy(config, ranks, compute)
    from mmscale.parallel.single import SingleStrategy

    return SingleStrategy(config, ranks, compute)
