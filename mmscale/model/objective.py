"""What the model must know of an objective: its loss, its weights, its outputs in evaluation.

Data's half is `mmscale.data.objective`; the two meet in the objective's block of a `Batch`. Each
loss is a sum that is already divided by the whole step's count, so that the sums of all
micro-batches of all ranks add up to the step's loss.

Shape suffixes: T positions, V vocabulary, D model width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from mmscale.batch import ObjectiveBlock
from mmscale.config import ModelConfig
from mmscale.model.positions import Positions
from mmscale.registry import LOSSES, OBJECTIVES

if TYPE_CHECKING:
    from mmscale.model.grad_cache import ContrastTerms

_LOGIT_ELEMENTS = 1 << 25  # float32 logits that exist at once
_LARGER_ON_GPU = 4  # times as many there: products of few rows leave most of it idle


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """What every loss reads of a forward pass."""

    hidden_TD: Tensor  # the output at every position of the batch, by flat position
    words_TD: Tensor  # the same, scaled for products with the embedding table
    table_VD: Tensor  # the embedding table
    smoothing: float  # share of a target that is spread over all answers
    positions: Positions  # which of the positions are this process's
    contrast: ContrastTerms | None  # contrastive loss that was found before this pass
    many_logits: bool | None = None  # see `mmscale.model.operators.Operators`


class Loss(ABC):
    """The model's half of an objective.

    Attributes:
        order: place among the losses of a step. Sums of floating-point numbers depend on it, so it
            never changes; a new objective takes the next free number.
        width_rules: by prefix of the names of its own weights, how their learning rate follows the
            width (`mmscale.model.width`): ``output`` for a head that reads the model's width,
            ``hidden`` or ``input``.
        constants: by name, the value that a weight of its own begins with; the others are drawn.
    """

    order: int
    width_rules: ClassVar[dict[str, str]] = {}
    constants: ClassVar[dict[str, float]] = {}

    def weights(self, config: ModelConfig) -> dict[str, nn.Module | nn.Parameter]:
        """Weights of its own, by their names in the model."""
        return {}

    def flops(self, config: ModelConfig) -> float:
        """Floating-point operations, forward, for one of what its loss is a mean over, without the
        logits over the vocabulary.
        """
        return 0.0

    def head(self, model: nn.Module, inputs: LossInputs, block: ObjectiveBlock) -> Any:
        """What a head of its own makes of the model's output, for `loss`; made for all objectives
        before the first loss. Its gradients are then found after those of the losses, whose memory
        is free again by then. None: no head, or a small one.
        """
        return None

    @abstractmethod
    def loss(
        self, model: nn.Module, inputs: LossInputs, block: ObjectiveBlock, head: Any
    ) -> Tensor:
        """The batch's share of the step's loss, float32 scalar; exactly 0 for an empty block, with
        a gradient of 0 for every weight of its own: all ranks take part in the same collectives.
        """

    @abstractmethod
    def outputs(self, model: nn.Module, inputs: LossInputs, block: ObjectiveBlock) -> Any:
        """What evaluation reads at the positions of the block."""


def losses() -> dict[str, Loss]:
    """The losses of all objectives by name, in their order."""
    data, model = set(OBJECTIVES.names()), set(LOSSES.names())
    for name in sorted(data ^ model):
        lacks = LOSSES if name in data else OBJECTIVES
        raise AssertionError(
            f"objective {name!r} is half there: {lacks.package} has no module {name}; add it"
        )
    return dict(sorted(LOSSES.all().items(), key=lambda item: item[1].order))


def rows_at_once(hidden_TD: Tensor, logits: int, many: bool | None) -> int:
    """How many rows, of so many logits each, are computed at once; ``many``: as on a GPU, None: by
    where they are.
    """
    if many is None:
        many = hidden_TD.device.type == "cuda"
    allowed = _LOGIT_ELEMENTS * (_LARGER_ON_GPU if many else 1)
    return max(1, allowed // max(1, logits))
