"""Muon: momentum whose update is orthogonalised (Jordan et al., 2024), for the matrices of the
blocks.

The update is scaled as in Moonlight (Liu et al., 2025), to the root mean square of AdamW's, so that
AdamW's learning rate and weight decay hold. A sharded matrix is gathered whole, orthogonalised on
every rank, and each rank keeps its own rows: the result does not depend on the number of ranks.
That is done in the type the model computes in; the iteration was made for bfloat16. A GRU's three
gates, which lie in one matrix, are orthogonalised together.

A matrix whose gradient is exactly 0, because its modality is not in the step, is left alone, and so
is its momentum: orthogonalised, what is left of an old momentum would move it at full speed for
hundreds of steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from mmscale.config import OptimizerConfig
from mmscale.optim.optimizer_kind import OptimizerKind
from mmscale.registry import OPTIMIZERS

# Quintic Newton-Schulz iteration; after five steps every singular value lies between about 0.7 and
# 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_RMS = 0.2  # of an AdamW update, about


def orthogonalise(matrix: Tensor) -> Tensor:
    """U V^T, nearly, of ``matrix`` [rows, columns] = U S V^T, in its type."""
    a, b, c = _COEFFICIENTS
    x = matrix / (matrix.norm(dtype=torch.float32) + 1e-7).to(matrix.dtype)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(a * x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x)
    return x if wide else x.T


class Muon(torch.optim.Optimizer):
    """For two-dimensional parameters, whole or sharded along any axis.

    Args:
        parameters: parameters or groups with ``lr`` and ``weight_decay``.
        momentum: share of the running sum that is kept (Nesterov's form).
        compute: type of the orthogonalisation; parameters and momentum keep theirs.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        momentum: float,
        weight_decay: float,
        compute: torch.dtype = torch.float32,
    ) -> None:
        self._compute = compute
        self.found_inf: Tensor | None = None  # 1: leave everything as it is, as fused AdamW does
        self._step_supports_amp_scaling = True  # torch's word for reading it
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient which is not 0."""
        assert closure is None, "losses come from the training loop"
        moving = [
            (parameter, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not moving:
            return
        keeps = _largest([parameter.grad for parameter, _ in moving]) == 0.0
        if self.found_inf is not None:
            keeps |= self.found_inf.bool()
        for (parameter, group), keep in zip(moving, keeps, strict=True):
            self._update(parameter, group, keep)

    def _update(self, parameter: Tensor, group: dict[str, Any], keep: Tensor) -> None:
        assert parameter.dim() == 2 and parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        moved = buffer.lerp(parameter.grad, 1.0 - group["momentum"])
        update = parameter.grad.lerp(moved, group["momentum"]).to(self._compute)
        whole = update.full_tensor() if isinstance(update, DTensor) else update
        scale = _RMS * max(whole.shape) ** 0.5
        step = orthogonalise(whole).to(parameter.dtype).mul_(scale)
        if isinstance(parameter, DTensor):
            step = distribute_tensor(
                step, parameter.device_mesh, parameter.placements, src_data_rank=None
            )
        changed = parameter * (1.0 - group["lr"] * group["weight_decay"]) - group["lr"] * step
        buffer.copy_(_choose(keep, buffer, moved))
        parameter.copy_(_choose(keep, parameter, changed))


def _largest(gradients: list[Tensor]) -> Tensor:
    """The largest magnitude in each gradient, float32 [gradients]; of one that is sharded, over all
    its shards.
    """
    shards = [
        gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients
    ]
    shards = [shard if shard.numel() else shard.new_zeros(1) for shard in shards]
    largest = list(torch._foreach_norm(shards, ord=torch.inf))
    split_alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for number, gradient in enumerate(gradients):
        if isinstance(gradient, DTensor):
            axes = [
                axis
                for axis, placement in enumerate(gradient.placements)
                if not placement.is_replicate()
            ]
            groups = tuple(gradient.device_mesh.get_group(axis) for axis in axes)
            split_alike[groups].append(number)
    for groups, numbers in split_alike.items():
        # Stacked, not indexed by numbers, which the host would have to send to the device.
        part = torch.stack([largest[number] for number in numbers])
        for ranks in groups:
            dist.all_reduce(part, dist.ReduceOp.MAX, ranks)
        for number, over_all in zip(numbers, part.unbind(), strict=True):
            largest[number] = over_all
    return torch.stack(largest).float()


def _choose(keep: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """``old`` where the scalar ``keep`` is true, else ``new``; of sharded tensors, each rank its
    own part.
    """
    if not isinstance(old, DTensor):
        return torch.where(keep, old, new)
    local = torch.where(keep, old.to_local(), new.to_local())  # type: ignore[attr-defined]
    return DTensor.from_local(
        local, old.device_mesh, old.placements, shape=old.shape, stride=old.stride()
    )


class MuonKind(OptimizerKind):
    """See `OptimizerKind`."""

    card = "Muon with AdamW"
    moments = ("momentum_buffer",)
    elementwise = False

    def takes(self, name: str, axes: int) -> bool:
        """Weights between vectors of the residual stream: no embeddings, stems or heads."""
        return name.startswith("blocks.") and axes == 2

    def lr_factor(self, rule: str, ratio: float) -> float:
        """Its update has all singular values alike: its effect grows with the width's root only."""
        assert rule in ("hidden", "output", "input"), rule
        return 1.0 if rule == "input" else ratio**0.5

    def build(
        self, groups: list[dict[str, Any]], config: OptimizerConfig, compute: torch.dtype
    ) -> torch.optim.Optimizer:
        """See `OptimizerKind`."""
        return Muon(groups, config.lr, config.momentum, config.weight_decay, compute)


OPTIMIZERS.register("muon", MuonKind())
