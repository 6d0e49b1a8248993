"""Classification by linear heads: cross-entropy with the classes of each head.

Shape suffixes: T classified positions, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from mmscale.batch import ObjectiveBlock
from mmscale.config import ModelConfig
from mmscale.model.objective import Loss, LossInputs
from mmscale.registry import LOSSES


class ClassifyLoss(Loss):
    """The block: see `mmscale.data.objectives.classify`. Heads are sorted by their names."""

    order = 3
    width_rules: ClassVar[dict[str, str]] = {"class_heads.": "output"}

    def weights(self, config: ModelConfig) -> dict[str, nn.Module | nn.Parameter]:
        """See `Loss`."""
        heads = {
            f"head_{name}": nn.Linear(config.width, len(config.classes[name]))
            for name in sorted(config.classes)
        }
        return {"class_heads": nn.ModuleDict(heads)}

    def loss(self, model: Any, inputs: LossInputs, block: ObjectiveBlock, head: Any) -> Tensor:
        """See `Loss`."""
        names = ("head_T", "class_T2", "share_T", "weight_T")
        loss = classification_loss(
            self._logits(model, inputs, block),
            smoothing=inputs.smoothing,
            **{name: block[name] for name in names},
        )
        return loss * inputs.positions.part

    def outputs(self, model: Any, inputs: LossInputs, block: ObjectiveBlock) -> list[Tensor]:
        """Logits of every head, float32 [T, classes]."""
        return [logits.float() for logits in self._logits(model, inputs, block)]

    def _logits(self, model: Any, inputs: LossInputs, block: ObjectiveBlock) -> list[Tensor]:
        hidden_TD = inputs.hidden_TD[block["at_T"]]
        return [head(hidden_TD) for head in model.class_heads.values()]


def classification_loss(
    logits: Sequence[Tensor],
    *,
    head_T: Tensor,
    class_T2: Tensor,
    share_T: Tensor,
    weight_T: Tensor,
    smoothing: float,
) -> Tensor:
    """Weighted sum of cross-entropies, float32 scalar; ``logits`` are each head's, [T, classes],
    for every position.

    A position counts for its own head alone. Its target is ``share`` of the first of two classes
    and the rest of the second.
    """
    total = weight_T.new_zeros(())
    for number, of_head in enumerate(logits):
        own = (head_T == number) * weight_T
        log_probs = of_head.float().log_softmax(-1)
        class_T2_ = class_T2.clamp(max=of_head.shape[1] - 1)  # those of other heads have no weight
        first, second = log_probs.gather(1, class_T2_).unbind(1)
        likely = (1.0 - smoothing) * (
            share_T * first + (1.0 - share_T) * second
        ) + smoothing * log_probs.mean(-1)
        total = total - (likely * own).sum()
    return total


LOSSES.register("classify", ClassifyLoss())
