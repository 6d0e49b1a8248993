"""Which optimiser updates which parameter, with float32 moments everywhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmscale.config import ModelConfig, OptimizerConfig
from mmscale.model.width import lr_factor
from mmscale.optim.muon import Muon


class TrainOptimizer:
    """AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest.

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

        def of(kind: str) -> list[dict[str, Any]]:
            return [group for group in groups if group["kind"] == kind]

        self._inner: list[torch.optim.Optimizer] = []
        if of("adamw"):
            betas = (config.beta1, config.beta2)
            self._inner.append(
                torch.optim.AdamW(of("adamw"), betas=betas, eps=config.eps, fused=True)
            )
        if of("muon"):
            self._inner.append(
                Muon(of("muon"), config.lr, config.momentum, config.weight_decay, compute)
            )

        # At once, so that a checkpoint holds the same names whether or not every parameter had a
        # gradient.
        self.allocate(0)

    def set_learning_rate(self, lr: float) -> None:
        """Use ``lr``, times each group's own factor."""
        for optimizer in self._inner:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_factor"]

    def step(self, skip: Tensor | None = None) -> None:
        """Update the parameters from their gradients, unless ``skip``, a float32 scalar on the
        device, is 1.
        """
        for optimizer in self._inner:
            # What `torch.amp.GradScaler` does too: the kernel reads it, so the host need not.
            optimizer.found_inf = skip  # type: ignore[attr-defined]
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self._inner:
            optimizer.zero_grad(set_to_none=True)

    def allocate(self, step: int) -> None:
        """Make the moments as they are after ``step`` updates, zero until a checkpoint is read into
        them.
        """
        for optimizer in self._inner:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    zeros = torch.zeros_like
                    if isinstance(optimizer, Muon):
                        optimizer.state[parameter] = {"momentum_buffer": zeros(parameter)}
                        continue
                    optimizer.state[parameter] = {
                        # Fused AdamW keeps its step count beside the parameter.
                        "step": torch.tensor(
                            float(step), dtype=torch.float32, device=parameter.device
                        ),
                        "exp_avg": zeros(parameter),
                        "exp_avg_sq": zeros(parameter),
                    }

    def state_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: ``<moment>.<parameter>``, the step counts excepted."""
        return {
            f"{moment}.{self._names[id(parameter)]}": tensor
            for optimizer in self._inner
            for parameter, state in optimizer.state.items()
            for moment, tensor in state.items()
            if moment != "step"
        }


def parameter_groups(
    model: nn.Module, shapes: dict[str, torch.Size], config: OptimizerConfig, sizes: ModelConfig
) -> list[dict[str, Any]]:
    """Groups as `torch.optim` takes them, of parameters with the same ``kind`` (adamw or muon),
    rate and decay.

    ``shapes`` are those of the whole parameters, which may lie elsewhere in parts.
    """
    groups: dict[tuple[str, float, float, Any], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        axes = len(shapes[name])
        kind = "muon" if config.name == "muon" and _is_block_matrix(name, axes) else "adamw"
        factor = lr_factor(name, axes, sizes, muon=kind == "muon")
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


def _is_block_matrix(name: str, axes: int) -> bool:
    """Weights between vectors of the residual stream; embeddings, stems and heads are not of this
    kind.
    """
    return name.startswith("blocks.") and axes == 2
