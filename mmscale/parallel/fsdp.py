"""FSDP2: every parameter is sharded along its first axis (`torch.distributed.fsdp.fully_shard`).

Over all ranks, or, with ``parallel.replicas``, over the ranks of each replica: hybrid sharding, which sends weights
within a replica only (such as one machine), and sums gradients between them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from mmscale.batch import Batch
from mmscale.config import Config
from mmscale.model.contrast import ContrastTerms
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.parallel.ranks import Ranks


class FsdpStrategy:
    """One unit per stem and per block, the rest in the root; gradients are summed in fp32."""

    name = "fsdp"
    model: nn.Module

    def __init__(self, model: FusionTransformer, config: Config, ranks: Ranks, compute: torch.dtype) -> None:
        replicas = config.parallel.replicas
        shape, names = (ranks.world,), ("shard",)
        if replicas > 1:
            shape, names = (replicas, ranks.world // replicas), ("replicate", "shard")  # type: ignore[assignment]
        mesh = init_device_mesh(ranks.device.type, shape, mesh_dim_names=names)
        # Inputs keep their types: rotary angles and targets must not be rounded to bf16.
        precision = MixedPrecisionPolicy(
            param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        for unit in (model.image_stem, model.audio_stem, *model.blocks, model):
            fully_shard(unit, mesh=mesh, mp_policy=precision)
            assert isinstance(unit, FSDPModule)
            # A plain sum, not a mean: losses are divided by the step's counts. Gloo has no other reduction.
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
        model.to_empty(device=ranks.device)
        initialise(model, config.model, config.seed)
        self.model = model

    @torch.no_grad()
    def embeddings(self, batch: Batch) -> dict[str, Tensor]:
        """See `Strategy`."""
        found: dict[str, Tensor] = self.model(batch, embeddings_only=True)
        return found

    def forward_backward(
        self, batch: Batch, last: bool, contrast: ContrastTerms | None = None
    ) -> dict[str, Tensor]:
        """See `Strategy`."""
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(last)
        self.model.set_is_last_backward(last)
        losses = self.model(batch, contrast)
        torch.stack(list(losses.values())).sum().backward()
        return {name: loss.detach() for name, loss in losses.items()}
