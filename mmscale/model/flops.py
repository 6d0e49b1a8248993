"""Estimated arithmetic of a packed sequence, from what is known before it is read.

Forward pass, in floating-point operations (a multiply-add counts as two). Training costs about
three times as much, a factor that cancels where costs are compared. All arguments may be numbers or
arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmscale.config import MediaConfig, ModelConfig
from mmscale.model.objective import losses
from mmscale.registry import AUDIO_STEMS, IMAGE_STEMS


class Flops:
    """Costs by the numbers of a config.

    Args:
        model, media: sizes of blocks and stems; each stem says its own cost
            (`mmscale.model.stem`).
        vocabulary: rows of the output projection.
    """

    def __init__(self, model: ModelConfig, media: MediaConfig, vocabulary: int) -> None:
        mixing, square = _mixing(model)
        self.per_token = 2.0 * model.layers * (mixing + 3 * model.width * model.hidden)
        self.per_square = 2.0 * model.layers * square
        self.per_image_token = IMAGE_STEMS[model.image_stem].flops(model, media)
        self.per_audio_token = AUDIO_STEMS[model.audio_stem].flops(model, media)
        self.per_prediction = 2.0 * model.width * vocabulary
        # By objective, for one of what its loss is a mean over.
        self.per_item = {name: loss.flops(model) for name, loss in losses().items()}

    def sequence(self, totals: Mapping[str, Any]) -> Any:
        """Cost of a sequence with these totals (`mmscale.data.planning.sample_sizes.total_names`).

        ``squares`` is the sum of its segments' squared lengths; ``predictions`` are positions that
        need logits over the vocabulary. What is missing costs nothing.
        """
        costs = {
            "tokens": self.per_token,
            "squares": self.per_square,
            "image_tokens": self.per_image_token,
            "audio_tokens": self.per_audio_token,
            "predictions": self.per_prediction,
            **self.per_item,
        }
        unknown = totals.keys() - costs.keys()
        assert not unknown, f"totals of unknown cost: {', '.join(sorted(unknown))}"
        return sum(costs[name] * total for name, total in totals.items())


def _mixing(model: ModelConfig) -> tuple[int, int]:
    """Multiply-adds of a block's mixer: for each position, and for each pair of a segment's."""
    if model.fusion == "rnn":
        # Three gates from input and from state, and the projection.
        return 7 * model.width**2, 0
    assert model.fusion == "transformer", f"model.fusion={model.fusion}: its FLOPs are not known"
    # Every query meets every key of its segment, twice: scores, and the weighted sum of values.
    projections = model.width * model.head_dim * (2 * model.heads + 2 * model.kv_heads)
    return projections, 2 * model.heads * model.head_dim
