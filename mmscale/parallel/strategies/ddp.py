"""DDP: the whole model on every rank, gradients summed over them
(`torch.nn.parallel.DistributedDataParallel`).
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmscale.batch import Batch
from mmscale.config import Config, ParallelConfig
from mmscale.model.fusion import FusionTransformer
from mmscale.model.grad_cache import ContrastTerms
from mmscale.parallel.build import Builder
from mmscale.parallel.compute_copies import run_in
from mmscale.parallel.costs import CommunicationTime, Traffic, sent_share
from mmscale.parallel.optimizer_step import OptimizerStep
from mmscale.parallel.ranks import Ranks
from mmscale.registry import STRATEGIES


class _Computed(nn.Module):
    """The model as it is run: on copies of its parameters in the compute type."""

    def __init__(self, model: FusionTransformer, compute: torch.dtype) -> None:
        super().__init__()
        self.model, self._compute = model, compute

    def forward(self, *arguments: Any) -> Any:
        return run_in(self._compute, self.model, *arguments)


class DdpStrategy(OptimizerStep):
    """fp32 parameters on every rank; the gradients of a step are summed in fp32 behind its last
    backward pass.
    """

    name = "ddp"
    float8 = adversarial = takes_weights = True

    def __init__(
        self, config: Config, ranks: Ranks, compute: torch.dtype, builder: Builder
    ) -> None:
        self.model = model = builder.build(config, ranks)
        self._compute = compute
        self._whole = builder.replicate(
            _Computed(model, compute),
            device_ids=[ranks.device.index] if ranks.device.type == "cuda" else None,
            # A trained tower may have weights its last hidden states do not need.
            find_unused_parameters=config.model.image_tower_trained
            or config.model.audio_tower_trained,
            gradient_as_bucket_view=True,
        )
        # A plain sum, not a mean: losses are divided by the step's counts.
        self._whole.register_comm_hook(None, _sum)
        self.prepare_update(config, compute)

    @torch.no_grad()
    def embeddings(self, batch: Batch) -> dict[str, Tensor]:
        """See `Strategy`."""
        embeddings: dict[str, Tensor] = self._whole.module(batch, None, True)
        return embeddings

    def forward_backward(
        self, batch: Batch, last: bool, contrast: ContrastTerms | None = None
    ) -> dict[str, Tensor]:
        """See `Strategy`."""
        with contextlib.nullcontext() if last else self._whole.no_sync():
            losses = self._whole(batch, contrast)
            torch.stack(list(losses.values())).sum().backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def input_losses(self, batch: Batch) -> dict[str, Tensor]:
        """See `Strategy`."""
        losses: dict[str, Tensor] = run_in(self._compute, self.model, batch)
        return losses

    @classmethod
    def communication_time(cls, traffic: Traffic, parallel: ParallelConfig) -> CommunicationTime:
        """See `Strategy`. All gradients at once, behind the last backward pass: two thirds of its
        arithmetic.
        """
        summed = 2.0 * sent_share(traffic.world) * traffic.bytes_of("allreduce")
        return CommunicationTime(
            hideable_s=summed / traffic.rate(traffic.world), behind=2 / 3 / traffic.passes
        )

    @classmethod
    def is_tried(cls, world: int, whole_fits: bool) -> bool:
        """See `Strategy`. Where it fits, because nothing is gathered."""
        return world > 1 and whole_fits


# DDP looks at a hook's annotations, and knows them only as objects, not as the strings they are in
# this file.
def _sum(state, bucket):
    """Sum a bucket of gradients over all ranks; a future of its one tensor."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


STRATEGIES.register("ddp", DdpStrategy)
