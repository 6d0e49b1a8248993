"""What stands in for parts of training in a dry run, handed in where training has its own.

Attention, which keeps what a fused kernel keeps (its inputs, its output and a float32 a head and
position); recurrent layers (`dry_gru`); the buckets of ddp (`dry_ddp`); the order of positions,
which is read from numbers; and initial weights, which are not drawn.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from mmscale.batch import Batch
from mmscale.capacity import dry_gru
from mmscale.capacity.dry_ddp import DryDistributedDataParallel
from mmscale.config import Config
from mmscale.errors import UserError
from mmscale.model.attention import AttentionPlan, make_plan
from mmscale.model.fusion import FusionTransformer
from mmscale.model.operators import Operators, use_operators
from mmscale.model.time_major import time_major
from mmscale.parallel.build import Builder, ModelSplit
from mmscale.parallel.ranks import Ranks
from mmscale.parallel.strategy import Strategy


class DryBuilder(Builder):
    """Builds models without memory that compute with ``operators``."""

    def __init__(self, operators: Operators) -> None:
        self._operators = operators
        self._built: FusionTransformer | None = None

    def outline(self, config: Config, ranks: Ranks, split: ModelSplit | None) -> FusionTransformer:
        """See `Builder`. Without fake tensors: a mesh is made of numbers that are read; parameters
        on the meta device are cheaper.
        """
        with unset_fake_temporarily():
            self._built = super().outline(config, ranks, split)
        use_operators(self._built, self._operators)
        return self._built

    def fill(self, model: FusionTransformer, config: Config) -> None:
        """See `Builder`. There is nothing to fill."""

    def replicate(  # type: ignore[override]
        self, module: nn.Module, **settings: Any
    ) -> DryDistributedDataParallel:
        """See `Builder`."""
        return DryDistributedDataParallel(module, **settings)

    def check(self, strategy: Strategy) -> None:
        """Raises `UserError` if the model of ``strategy`` was built in any other way."""
        if strategy.model is not self._built:
            raise UserError(
                f"parallel.strategy={strategy.name}: does not take its model from Builder.build, "
                "so it cannot be planned; use another strategy"
            )


class _Fused(torch.autograd.Function):
    """What a fused attention kernel keeps and gives."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    out: Tensor = _Fused.apply(q, k, v)
    return out


def dry_operators(fake: FakeTensorMode, batch: Batch, fused: bool) -> Operators:
    """For ``batch``, of real tensors. Without ``fused``, attention is the CPU's grouped path."""
    order = time_major(batch.segment_BL)
    sizes: Any = order.batch_sizes.tolist()  # the one of its tensors that is read
    order = dataclasses.replace(faked(fake, order), batch_sizes=sizes)
    recurrent: dict[str, Any] = {
        "time_major": lambda *unused: order,
        "gru": dry_gru.gru,
        "pack": dry_gru.pack,
        "unpack": dry_gru.unpack,
    }
    if fused:
        plan = AttentionPlan("fused")
        return Operators(
            make_plan=lambda *unused: plan, attend=_attend_fused, many_logits=True, **recurrent
        )
    plan = faked(fake, make_plan(batch, "grouped"))
    assert plan.groups is not None
    plan.groups = [faked(fake, group) for group in plan.groups]
    return Operators(make_plan=lambda *unused: plan, **recurrent)


def faked(fake: FakeTensorMode, record: Any) -> Any:
    """A dataclass with fake tensors instead of its real ones."""
    changes = {
        item.name: fake.from_tensor(getattr(record, item.name))
        for item in dataclasses.fields(record)
        if isinstance(getattr(record, item.name), Tensor)
    }
    return dataclasses.replace(record, **changes)
