"""What all ranks add up at the end of a step, in one tensor: one collective, one read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import torch
from torch import Tensor

Loss = TypeVar("Loss", Tensor, float)


@dataclass(frozen=True, kw_only=True)
class StepSums(Generic[Loss]):
    """One rank's numbers before they are summed, or all ranks' afterwards.

    The tensor holds the fields in this order.
    """

    losses: dict[str, Loss]
    broken: float  # samples that could not be used
    samples: float
    interrupted: float  # ranks that were asked to stop by the keyboard
    stopped: float  # ranks that were asked to stop by another signal
    # Per rank, seconds. A rank fills its own place and leaves the others 0.
    work_s: list[float]
    wait_s: list[float]

    def pack(self: StepSums[Tensor]) -> Tensor:
        """float32 [losses + 4 + 2 x ranks], on the device of the losses."""
        losses = torch.stack(list(self.losses.values()))
        counts: list[float] = [self.broken, self.samples, self.interrupted, self.stopped]
        return torch.cat([losses, losses.new_tensor([*counts, *self.work_s, *self.wait_s])])

    @staticmethod
    def unpack(packed: Tensor, losses: Sequence[str], ranks: int) -> StepSums[float]:
        """The numbers in what `pack` made, of so many ``ranks``; waits for the device.

        ``losses``: their names, in the order in which they were packed.
        """
        assert len(packed) == len(losses) + 4 + 2 * ranks, "packed otherwise"
        numbers = iter(packed.tolist())
        return StepSums(
            losses=dict(zip(losses, islice(numbers, len(losses)), strict=True)),
            broken=next(numbers),
            samples=next(numbers),
            interrupted=next(numbers),
            stopped=next(numbers),
            work_s=list(islice(numbers, ranks)),
            wait_s=list(islice(numbers, ranks)),
        )
