"""One process, one device, no sharding: the reference every other strategy is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmscale.batch import Batch
from mmscale.config import Config
from mmscale.model.grad_cache import ContrastTerms
from mmscale.model.initialise import initialise
from mmscale.parallel.build import build_model
from mmscale.parallel.optimizer_step import OptimizerStep
from mmscale.parallel.ranks import Ranks


def run_in(compute: torch.dtype, model: nn.Module, *arguments: Any) -> Any:
    """``model(*arguments)`` on copies of its fp32 parameters in another type, whose gradients flow
    back as fp32.
    """
    if compute == torch.float32:
        return model(*arguments)
    copies = {name: p.to(compute) for name, p in model.named_parameters()}
    return torch.func.functional_call(model, copies, arguments)


class SingleStrategy(OptimizerStep):
    """fp32 parameters; in bf16 each micro-batch runs on bf16 copies, whose gradients flow back as
    fp32.
    """

    name = "single"

    def __init__(self, config: Config, ranks: Ranks, compute: torch.dtype) -> None:
        self.model = build_model(config, ranks).to_empty(device=ranks.device)
        self._compute = compute
        initialise(self.model, config.model, config.seed)
        self.prepare_update(config, compute)

    @torch.no_grad()
    def embeddings(self, batch: Batch) -> dict[str, Tensor]:
        """See `Strategy`."""
        found: dict[str, Tensor] = run_in(self._compute, self.model, batch, None, True)
        return found

    def forward_backward(
        self, batch: Batch, last: bool, contrast: ContrastTerms | None = None
    ) -> dict[str, Tensor]:
        """See `Strategy`."""
        losses = run_in(self._compute, self.model, batch, contrast)
        torch.stack(list(losses.values())).sum().backward()
        return {name: loss.detach() for name, loss in losses.items()}
