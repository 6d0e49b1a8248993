"""One small interface for every way to split a model over ranks.

In every strategy the weights, the optimiser's moments and the summed gradients are fp32; ``bf16`` means that
forward and backward see bf16 copies of the weights. The gradient of a step is the *sum* over micro-batches and
ranks, because every loss is already divided by the whole step's count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmscale.batch import Batch
from mmscale.config import Config
from mmscale.errors import UserError
from mmscale.model.contrast import ContrastTerms
from mmscale.model.fusion import FusionTransformer
from mmscale.parallel.compile import compile_blocks
from mmscale.parallel.ranks import Ranks
from mmscale.parallel.recompute import set_recompute

COMPUTE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Strategy(Protocol):
    """A model that lies on its devices and knows how to sum gradients over the ranks."""

    name: str
    model: nn.Module  # its parameters are what is optimised and saved: fp32, sharded or whole

    def forward_backward(
        self, batch: Batch, last: bool, contrast: ContrastTerms | None = None
    ) -> dict[str, Tensor]:
        """Losses of a micro-batch (detached float32 scalars); gradients are added to the parameters'.

        ``contrast`` replaces the batch's own contrastive loss. ``last`` marks the step's last micro-batch, after which
        the gradients are summed over all ranks.
        """

    def embeddings(self, batch: Batch) -> dict[str, Tensor]:
        """`FusionTransformer.forward` with ``embeddings_only``, without gradients."""


def build_strategy(config: Config, ranks: Ranks) -> Strategy:
    """The strategy ``config.parallel.strategy`` names, with the model built and its weights drawn.

    Raises:
        UserError: the strategy does not fit the number of ranks.
    """
    from mmscale.parallel.ddp import DdpStrategy
    from mmscale.parallel.fsdp import FsdpStrategy
    from mmscale.parallel.single import SingleStrategy

    kinds: dict[str, Callable[[FusionTransformer, Config, Ranks, torch.dtype], Strategy]] = {
        "single": SingleStrategy,
        "ddp": DdpStrategy,
        "fsdp": FsdpStrategy,
    }
    name = config.parallel.strategy
    if name == "auto":
        name = "fsdp" if ranks.world > 1 else "single"
    if name == "single" and ranks.world > 1:
        raise UserError(
            f"parallel.strategy=single, but the launcher started {ranks.world} ranks; use fsdp, or start one process"
        )
    replicas = config.parallel.replicas
    if replicas > 1 and (name != "fsdp" or ranks.world % replicas):
        raise UserError(
            f"parallel.replicas={replicas}: needs parallel.strategy=fsdp and a number of ranks it divides, "
            f"not {name} on {ranks.world}; use 1"
        )
    compute = COMPUTE_TYPES[config.train.precision]
    with torch.device("meta"):
        model = FusionTransformer(config.model, config.media)
    if config.parallel.compile:
        compile_blocks(model, ranks.device)
    set_recompute(model, config.parallel.checkpointing)
    return kinds[name](model, config, ranks, compute)


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients to a global norm of at most ``max_norm`` (0: leave them); returns the norm before."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if max_norm > 0.0:
        torch.nn.utils.clip_grads_with_norm_(list(model.parameters()), max_norm, norm)
    return norm
