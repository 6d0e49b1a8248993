"""AdamW (Loshchilov and Hutter, 2019): torch's own fused kernel, for any parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmscale.config import OptimizerConfig
from mmscale.optim.optimizer_kind import OptimizerKind
from mmscale.registry import OPTIMIZERS


class AdamWKind(OptimizerKind):
    """See `OptimizerKind`."""

    card = "AdamW"
    moments = ("exp_avg", "exp_avg_sq")
    elementwise = True

    def lr_factor(self, rule: str, ratio: float) -> float:
        """Its update of a matrix is nearly of rank one, so its effect grows with the width."""
        assert rule in ("hidden", "output", "input"), rule
        return 1.0 if rule == "input" else ratio

    def build(
        self, groups: list[dict[str, Any]], config: OptimizerConfig, compute: torch.dtype
    ) -> torch.optim.Optimizer:
        """See `OptimizerKind`."""
        betas = (config.beta1, config.beta2)
        return torch.optim.AdamW(groups, betas=betas, eps=config.eps, fused=True)

    def state(self, parameter: Tensor, updates: int) -> dict[str, Tensor]:
        """The fused kernel keeps its step count, a float32 scalar, beside the parameter."""
        step = torch.tensor(float(updates), dtype=torch.float32, device=parameter.device)
        return {"step": step, **super().state(parameter, updates)}


OPTIMIZERS.register("adamw", AdamWKind())
