"""An exponential moving average of the weights, in float32, split over the ranks as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def decay_at(decay: float, step: int) -> float:
    """The decay of update number ``step`` (from 0): ``min(decay, (1 + step) / (10 + step))``.

    So the first weights, which know nothing, are soon forgotten (as TensorFlow's ExponentialMovingAverage with
    ``num_updates``).
    """
    return min(decay, (1.0 + step) / (10.0 + step))


class Ema:
    """Averages of every parameter that is trained, by name.

    See `decay_at`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after step ``step`` in."""
        decay = decay_at(self._decay, step)
        for name, average in self.averages.items():
            average.lerp_(self._parameters[name].detach(), 1.0 - decay)

    def state_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: ``ema.<parameter>``."""
        return {f"ema.{name}": average for name, average in self.averages.items()}
