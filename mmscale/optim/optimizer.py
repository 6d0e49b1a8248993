"""Which optimiser updates which parameter, with float32 moments everywhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmscale.config import ModelConfig, OptimizerConfig
from mmscale.model.width import rule_of, width_ratio
from mmscale.registry import OPTIMIZERS

_REST = "adamw"  # updates what the chosen optimiser does not take


class TrainOptimizer:
    """The optimiser that the config names for what it takes, and AdamW for the rest.

    Matrices and convolutions are decayed, vectors (norms, biases, scales) are not. Learning rates
    and decays follow `mmscale.model.width`. Parameters that need no gradient (frozen) are left
    alone.
    """

    def __init__(
        self,
        model: nn.Module,
        config: OptimizerConfig,
        sizes: ModelConfig,
        compute: torch.dtype = torch.float32,
    ) -> None:
        self._names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        groups = parameter_groups(model, shapes, config, sizes)

        # By kind, AdamW first.
        self._inner: dict[str, torch.optim.Optimizer] = {}
        for kind in dict.fromkeys((_REST, config.name)):
            members = [group for group in groups if group["kind"] == kind]
            if members:
                self._inner[kind] = build_optimizer(kind, members, config, compute)

        # At once, so that a checkpoint holds the same names whether or not every parameter had a
        # gradient.
        self.allocate(0)

    def set_learning_rate(self, lr: float) -> None:
        """Use ``lr``, times each group's own factor."""
        for optimizer in self._inner.values():
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_factor"]

    def step(self, skip: Tensor | None = None) -> None:
        """Update the parameters from their gradients, unless ``skip``, a float32 scalar on the
        device, is 1.
        """
        for optimizer in self._inner.values():
            # What `torch.amp.GradScaler` does too: the kernel reads it, so the host need not.
            optimizer.found_inf = skip  # type: ignore[attr-defined]
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self._inner.values():
            optimizer.zero_grad(set_to_none=True)

    def allocate(self, step: int) -> None:
        """Make the moments as they are after ``step`` updates, zero until a checkpoint is read into
        them.
        """
        for kind, optimizer in self._inner.items():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.state[parameter] = OPTIMIZERS[kind].state(parameter, step)

    def state_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: ``<moment>.<parameter>``."""
        return {
            f"{moment}.{self._names[id(parameter)]}": state[moment]
            for kind, optimizer in self._inner.items()
            for parameter, state in optimizer.state.items()
            for moment in OPTIMIZERS[kind].moments
        }


def build_optimizer(
    kind: str, groups: list[dict[str, Any]], config: OptimizerConfig, compute: torch.dtype
) -> torch.optim.Optimizer:
    """The optimiser ``kind`` of ``groups``, which reads ``found_inf`` as a GradScaler's does."""
    optimizer: torch.optim.Optimizer = OPTIMIZERS[kind].build(groups, config, compute)
    assert getattr(optimizer, "_step_supports_amp_scaling", False), (
        f"{kind}: its step reads no found_inf, so it would take steps that are to be skipped"
    )
    return optimizer


def parameter_groups(
    model: nn.Module, shapes: dict[str, torch.Size], config: OptimizerConfig, sizes: ModelConfig
) -> list[dict[str, Any]]:
    """Groups as `torch.optim` takes them, of parameters with the same ``kind`` of optimiser,
    rate and decay.

    ``shapes`` are those of the whole parameters, which may lie elsewhere in parts.
    """
    chosen, ratio = OPTIMIZERS[config.name], width_ratio(sizes)
    groups: dict[tuple[str, float, float, Any], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        axes = len(shapes[name])
        kind = config.name if chosen.takes(name, axes) else _REST
        factor = OPTIMIZERS[kind].lr_factor(rule_of(name, axes, sizes), ratio)
        decay = config.weight_decay / factor if axes >= 2 else 0.0
        # Fused kernels take tensors that are split over the same ranks.
        mesh = getattr(parameter, "device_mesh", None)
        groups.setdefault((kind, factor, decay, mesh), []).append(parameter)
    return [
        {
            "params": members,
            "lr": config.lr * factor,
            "lr_factor": factor,
            "weight_decay": decay,
            "kind": kind,
        }
        for (kind, factor, decay, _), members in groups.items()
    ]
