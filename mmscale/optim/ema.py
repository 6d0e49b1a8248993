"""An exponential moving average of the weights, in float32, split over the ranks as they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def decay_at(decay: float, step: int) -> float:
    """The decay of update number ``step`` (from 0): ``min(decay, (1 + step) / (10 + step))``.

    So the first weights, which know nothing, are soon forgotten (as TensorFlow's
    ExponentialMovingAverage with ``num_updates``).
    """
    return min(decay, (1.0 + step) / (10.0 + step))


@torch.no_grad()
def take_in(
    pairs: Iterable[tuple[Tensor, Tensor]], decay: float, step: int, skip: Tensor | None
) -> None:
    """Move each (average, weights) pair's average towards its weights as after ``step``, unless
    ``skip`` is 1.

    ``skip``: float32 scalar, read on its device, so that the host need not wait for it.
    """
    share = 1.0 - decay_at(decay, step)
    for average, weights in pairs:
        taken = share if skip is None else (share * (1.0 - skip)).to(average.device)
        average.lerp_(weights.detach(), taken)


class Ema:
    """Averages of every parameter that is trained, by name.

    See `decay_at`.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self._parameters.items()}

    def update(self, step: int, skip: Tensor | None = None) -> None:
        """Take the weights after step ``step`` in; see `take_in`."""
        pairs = (
            (_own(average), _own(self._parameters[name])) for name, average in self.averages.items()
        )
        take_in(pairs, self._decay, step, skip)

    def state_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold: ``ema.<parameter>``."""
        return {f"ema.{name}": average for name, average in self.averages.items()}


def _own(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
