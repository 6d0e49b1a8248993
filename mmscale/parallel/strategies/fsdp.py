"""FSDP2: every parameter is sharded along its first axis (`torch.distributed.fsdp.fully_shard`).

Over all ranks, or, with ``parallel.replicas``, over the ranks of each replica: hybrid sharding,
which sends weights within a replica only (such as one machine), and sums gradients between them.
Neighbouring ranks may share the matrices of the blocks (`mmscale.parallel.tensor`) or the positions
of every sequence (`mmscale.parallel.context`) as well.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from mmscale.batch import Batch
from mmscale.config import Config, ParallelConfig
from mmscale.model.fusion import FusionTransformer
from mmscale.model.grad_cache import ContrastTerms
from mmscale.parallel.build import Builder
from mmscale.parallel.context import split_positions
from mmscale.parallel.costs import CommunicationTime, Traffic, sent_share
from mmscale.parallel.gloo_collectives import use_direct_exchange
from mmscale.parallel.optimizer_step import OptimizerStep
from mmscale.parallel.ranks import Ranks
from mmscale.parallel.tensor import split_matrices
from mmscale.registry import STRATEGIES


class FsdpStrategy(OptimizerStep):
    """One unit per stem and per block, the rest in the root; gradients are summed in fp32."""

    name = "fsdp"
    parts = ("replicas", "tensor", "context")
    offloads = ("cpu",)
    float8 = adversarial = takes_weights = True

    def __init__(
        self, config: Config, ranks: Ranks, compute: torch.dtype, builder: Builder
    ) -> None:
        split = partial(_split, config=config, ranks=ranks, compute=compute)
        there = torch.device("cpu") if config.parallel.offload == "cpu" else ranks.device
        self.model = builder.build(config, ranks, split, there)
        # Ranks that share matrices compute the same losses; one of them reports.
        self._loss_share = 1.0 if ranks.rank % config.parallel.tensor == 0 else 0.0
        self.prepare_update(config, compute)

    @torch.no_grad()
    def embeddings(self, batch: Batch) -> dict[str, Tensor]:
        """See `Strategy`."""
        embeddings: dict[str, Tensor] = self.model(batch, embeddings_only=True)
        return embeddings

    def forward_backward(
        self, batch: Batch, last: bool, contrast: ContrastTerms | None = None
    ) -> dict[str, Tensor]:
        """See `Strategy`."""
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(last)
        self.model.set_is_last_backward(last)
        losses = self.model(batch, contrast)
        torch.stack(list(losses.values())).sum().backward()
        return {name: loss.detach() * self._loss_share for name, loss in losses.items()}

    def input_losses(self, batch: Batch) -> dict[str, Tensor]:
        """See `Strategy`."""
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(False)
        self.model.set_is_last_backward(False)
        losses: dict[str, Tensor] = self.model(batch)
        return losses

    @classmethod
    def communication_time(cls, traffic: Traffic, parallel: ParallelConfig) -> CommunicationTime:
        """See `Strategy`. Weights are gathered in every pass, gradients are summed in the last."""
        world, gpu = traffic.world, traffic.gpu
        group = world // parallel.replicas
        gathered = traffic.bytes_of("allgather") * traffic.passes
        summed, between = traffic.bytes_of("reduce_scatter"), traffic.bytes_of("allreduce")
        hideable_s = sent_share(group) * (gathered + summed) / traffic.rate(group)
        if parallel.replicas > 1:
            return CommunicationTime(hideable_s=hideable_s + 2.0 * between / traffic.rate(world))
        if parallel.tensor > 1:
            waited_s = 2.0 * between * traffic.passes / gpu.link
            return CommunicationTime(hideable_s=hideable_s, exposed_s=waited_s)
        return CommunicationTime(hideable_s=hideable_s)

    @classmethod
    def is_tried(cls, world: int, whole_fits: bool) -> bool:
        """See `Strategy`."""
        return world > 1


def _split(model: FusionTransformer, config: Config, ranks: Ranks, compute: torch.dtype) -> None:
    """Shard ``model``, which has no memory yet, in place."""
    parallel, mesh = config.parallel, _mesh(config, ranks)
    if parallel.tensor > 1:
        split_matrices(model, config.model, mesh["tensor"])
    if parallel.context > 1:
        split_positions(model, mesh["context"], config.data.seq_len)
    # Inputs keep their types: rotary angles and targets must not be rounded to bf16.
    precision = MixedPrecisionPolicy(
        param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    offload = OffloadPolicy()
    if parallel.offload == "cpu":
        offload = CPUOffloadPolicy(pin_memory=ranks.device.type == "cuda")
    sharding = _sharding(mesh)
    for unit in (model.image_stem, model.audio_stem, *model.blocks, model):
        fully_shard(
            unit,
            mesh=sharding,
            mp_policy=precision,
            offload_policy=offload,
            reshard_after_forward=parallel.reshard and unit is not model,
        )
        assert isinstance(unit, FSDPModule)
        # A plain sum, not a mean: losses are divided by the step's counts. Gloo has no other
        # reduction.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
        if ranks.device.type == "cpu" and dist.get_backend() == "gloo":
            use_direct_exchange(unit)


def _mesh(config: Config, ranks: Ranks) -> DeviceMesh:
    """Ranks along (replicate, shard, context, tensor); axes of one are left out, but for shard."""
    parallel = config.parallel
    sizes = {
        "replicate": parallel.replicas,
        "shard": ranks.world // (parallel.replicas * parallel.context * parallel.tensor),
        "context": parallel.context,
        "tensor": parallel.tensor,
    }
    axes = {name: size for name, size in sizes.items() if size > 1 or name == "shard"}
    return init_device_mesh(ranks.device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))


def _sharding(mesh: DeviceMesh) -> DeviceMesh:
    """The axes FSDP shards over: those that share positions hold different parts of the weights
    too.
    """
    names = mesh.mesh_dim_names
    assert names is not None
    shard = "shard"
    if "context" in names:
        shard = "shard_context"
        mesh["shard", "context"]._flatten(shard)
    return mesh["replicate", shard] if "replicate" in names else mesh[shard]


STRATEGIES.register("fsdp", FsdpStrategy)
