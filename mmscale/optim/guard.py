"""Steps that must not be taken: a loss or gradient that is not finite, or a gradient far above its
usual size.

The decision is a tensor on the device, equal on every rank because it is made from sums over all of
them, and the optimiser leaves weights and moments alone where it is 1. The host learns of it when
it reads the step's metrics.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MEMORY = 0.98  # of the running mean of gradient norms
_FIRST_STEPS = 20  # during which the mean is not yet known


class StepGuard:
    """Args:
    max_spike: a norm above so many times its running mean is refused; 0: only what is not finite.
    norm_mean, steps: what an earlier part of the run ended with.
    """

    def __init__(
        self, max_spike: float, norm_mean: float, steps: int, device: torch.device
    ) -> None:
        self._max_spike = max_spike
        self.norm_mean = torch.tensor(norm_mean, device=device)
        self._steps = torch.tensor(float(steps), device=device)

    def should_skip(self, norm: Tensor, losses: Tensor) -> Tensor:
        """float32 scalar: 1 if the step is to be skipped, else 0; from the gradient's norm and the
        summed losses.
        """
        good = torch.isfinite(norm) & torch.isfinite(losses).all()
        if self._max_spike:
            good = good & (
                (norm <= self._max_spike * self.norm_mean) | (self._steps < _FIRST_STEPS)
            )
        share = torch.where(self._steps == 0, 1.0, 1.0 - _MEMORY)
        self.norm_mean = torch.where(good, self.norm_mean.lerp(norm.float(), share), self.norm_mean)
        self._steps = self._steps + good
        return (~good).float()
