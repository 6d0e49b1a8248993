"""One process, one device, no sharding: the reference every other strategy is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmscale.batch import Batch
from mmscale.config import Config
from mmscale.model.contrast import ContrastTerms
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.parallel.ranks import Ranks


class SingleStrategy:
    """fp32 parameters; in bf16 each micro-batch runs on bf16 copies, whose gradients flow back as fp32."""

    name = "single"
    model: nn.Module

    def __init__(self, model: FusionTransformer, config: Config, ranks: Ranks, compute: torch.dtype) -> None:
        self.model = model.to_empty(device=ranks.device)
        self._compute = compute
        initialise(self.model, config.model, config.seed)

    @torch.no_grad()
    def embeddings(self, batch: Batch) -> dict[str, Tensor]:
        """See `Strategy`."""
        return self._forward(batch, None, True)

    def _forward(self, *arguments: Any) -> Any:
        if self._compute == torch.float32:
            return self.model(*arguments)
        copies = {name: p.to(self._compute) for name, p in self.model.named_parameters()}
        return torch.func.functional_call(self.model, copies, arguments)

    def forward_backward(
        self, batch: Batch, last: bool, contrast: ContrastTerms | None = None
    ) -> dict[str, Tensor]:
        """See `Strategy`."""
        losses = self._forward(batch, contrast)
        torch.stack(list(losses.values())).sum().backward()
        return {name: loss.detach() for name, loss in losses.items()}
