"""An exponential moving average of the weights, in float32, split over the ranks as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Averages of every parameter that is trained, by name.

    The decay of update number t (from 0) is ``min(decay, (1 + t) / (10 + t))``, so that the first weights, which know
    nothing, are soon forgotten (as TensorFlow's ExponentialMovingAverage with ``num_updates``).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after step ``step`` in."""
        decay = min(self._decay, (1.0 + step) / (10.0 + step))
        for name, average in self.averages.items():
            average.lerp_(self._parameters[name].detach(), 1.0 - decay)

    def state_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: ``ema.<parameter>``."""
        return {f"ema.{name}": average for name, average in self.averages.items()}
