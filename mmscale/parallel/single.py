"""One process, one device, no sharding: the reference every other strategy is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmscale.batch import Batch
from mmscale.config import Config
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

    def forward_backward(self, batch: Batch, last: bool) -> dict[str, Tensor]:
        """See `Strategy`."""
        if self._compute == torch.float32:
            losses = self.model(batch)
        else:
            copies = {name: p.to(self._compute) for name, p in self.model.named_parameters()}
            losses = torch.func.functional_call(self.model, copies, (batch,))
        torch.stack(list(losses.values())).sum().backward()
        return {name: loss.detach() for name, loss in losses.items()}
