"""The update of a step by our own optimisers, for strategies whose parameters are plain or
distributed tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmscale.config import Config
from mmscale.optim.ema import Ema
from mmscale.optim.optimizer import TrainOptimizer
from mmscale.parallel.grad_clip import clip_gradients
from mmscale.parallel.strategy import Strategy


class OptimizerStep(Strategy):
    """Clips, judges, updates and averages; the second half of a `Strategy`."""

    def prepare_update(self, config: Config, compute: torch.dtype) -> None:
        """Make optimiser and averages; called once the parameters lie where they stay."""
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self._clip_norm = config.train.optimizer.clip_norm
        self._optimizer = TrainOptimizer(self.model, config.train.optimizer, config.model, compute)
        self._ema = Ema(self.model, config.train.ema) if config.train.ema else None

    def update(
        self, step: int, lr: float, should_skip: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `Strategy`."""
        norm = clip_gradients(self.model, self._clip_norm)
        skip = should_skip(norm)
        self._optimizer.set_learning_rate(lr)
        self._optimizer.step(skip)
        self._optimizer.zero_grad()
        if self._ema is not None:
            self._ema.update(step, skip)
        return norm, skip

    def state_tensors(self) -> dict[str, Tensor]:
        """See `Strategy`."""
        weights = {
            f"model.{name}": parameter.data for name, parameter in self.model.named_parameters()
        }
        averages = self._ema.state_tensors() if self._ema is not None else {}
        return weights | self._optimizer.state_tensors() | averages

    def restore(self, load: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        """See `Strategy`."""
        self._optimizer.allocate(updates)
        load(self.state_tensors())
