"""What an optimiser says of itself, so that nothing else needs to know its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmscale.config import OptimizerConfig


class OptimizerKind(ABC):
    """A kind of optimiser: which parameters it takes, how it updates them, what it remembers.

    An instance is registered in `mmscale.registry.OPTIMIZERS` and holds no state of a run.
    """

    # Its line in the model card, such as "Muon with AdamW".
    card: ClassVar[str]
    # Names of its float32 tensors of each parameter's shape, as checkpoints have them.
    moments: ClassVar[tuple[str, ...]]
    # Whether every element is updated from its own gradient and moments alone. Strategies that
    # cut parameters into flat pieces (ZeRO) ask this.
    elementwise: ClassVar[bool]

    def takes(self, name: str, axes: int) -> bool:
        """Whether it updates the parameter ``name`` of so many axes; AdamW updates what it leaves.

        By default it takes every parameter.
        """
        return True

    @abstractmethod
    def lr_factor(self, rule: str, ratio: float) -> float:
        """Factor of a parameter's learning rate under muP.

        Args:
            rule: hidden, output or input, as `mmscale.model.width.rule_of` has it.
            ratio: base width / width; 1 without muP.
        """

    @abstractmethod
    def build(
        self, groups: list[dict[str, Any]], config: OptimizerConfig, compute: torch.dtype
    ) -> torch.optim.Optimizer:
        """The optimiser of ``groups``, each with its own ``lr`` and ``weight_decay``.

        Its ``step`` reads ``found_inf`` (float32 scalar on the device, or None) as torch's fused
        ones do: where it is 1, weights and moments stay as they are. It says so, as they do, by
        ``_step_supports_amp_scaling``.

        Args:
            groups: as `torch.optim` takes them.
            config: momenta and the like.
            compute: type that the model computes in.
        """

    def state(self, parameter: Tensor, updates: int) -> dict[str, Tensor]:
        """A parameter's state after so many updates, with moments of 0.

        A checkpoint is then read into the moments. By default there is nothing but moments.
        """
        return {name: torch.zeros_like(parameter) for name in self.moments}
