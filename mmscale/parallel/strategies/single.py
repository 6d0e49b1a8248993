"""One process, one device, no sharding: the reference every other strategy is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from mmscale.batch import Batch
from mmscale.config import Config, ParallelConfig
from mmscale.errors import UserError
from mmscale.model.grad_cache import ContrastTerms
from mmscale.parallel.build import Builder
from mmscale.parallel.compute_copies import run_in
from mmscale.parallel.costs import CommunicationTime, Traffic
from mmscale.parallel.optimizer_step import OptimizerStep
from mmscale.parallel.ranks import Ranks
from mmscale.registry import STRATEGIES


class SingleStrategy(OptimizerStep):
    """fp32 parameters; in bf16 each micro-batch runs on bf16 copies, whose gradients flow back as
    fp32.
    """

    name = "single"
    float8 = adversarial = takes_weights = True

    def __init__(
        self, config: Config, ranks: Ranks, compute: torch.dtype, builder: Builder
    ) -> None:
        self.model = builder.build(config, ranks)
        self._compute = compute
        self.prepare_update(config, compute)

    @torch.no_grad()
    def embeddings(self, batch: Batch) -> dict[str, Tensor]:
        """See `Strategy`."""
        embeddings: dict[str, Tensor] = run_in(self._compute, self.model, batch, None, True)
        return embeddings

    def forward_backward(
        self, batch: Batch, last: bool, contrast: ContrastTerms | None = None
    ) -> dict[str, Tensor]:
        """See `Strategy`."""
        losses = run_in(self._compute, self.model, batch, contrast)
        torch.stack(list(losses.values())).sum().backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def input_losses(self, batch: Batch) -> dict[str, Tensor]:
        """See `Strategy`."""
        losses: dict[str, Tensor] = run_in(self._compute, self.model, batch)
        return losses

    @classmethod
    def check_world(cls, world: int) -> None:
        """See `Strategy`."""
        if world > 1:
            raise UserError(
                f"parallel.strategy=single, but the launcher started {world} ranks; use fsdp, or "
                "start one process"
            )

    @classmethod
    def communication_time(cls, traffic: Traffic, parallel: ParallelConfig) -> CommunicationTime:
        """See `Strategy`. There is nobody to send to."""
        return CommunicationTime()

    @classmethod
    def is_tried(cls, world: int, whole_fits: bool) -> bool:
        """See `Strategy`."""
        return world == 1


STRATEGIES.register("single", SingleStrategy)
