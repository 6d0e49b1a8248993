"""Estimated arithmetic of a packed sequence, from what is known before it is read.

Forward pass, in floating-point operations (a multiply-add counts as two). Training costs about
three times as much, a factor that cancels where costs are compared. All arguments may be numbers or
arrays.
"""

from __future__ import annotations

import json
from typing import Any

from mmscale.config import MediaConfig, ModelConfig

_VISION_SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size")
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
}  # of every vision config of transformers


class Flops:
    """Costs by the numbers of a config.

    Args:
        model, media: sizes of blocks and stems.
        vocabulary: rows of the output projection.
    """

    def __init__(self, model: ModelConfig, media: MediaConfig, vocabulary: int) -> None:
        if model.fusion == "rnn":
            mixing, square = (
                7 * model.width**2,
                0,
            )  # three gates from input and from state, and the projection
        else:
            mixing = model.width * model.head_dim * (2 * model.heads + 2 * model.kv_heads)
            # Every query meets every key of its segment, twice: scores, and the weighted sum of
            # values.
            square = 2 * model.heads * model.head_dim
        self.per_token = 2.0 * model.layers * (mixing + 3 * model.width * model.hidden)
        self.per_square = 2.0 * model.layers * square
        self.per_image_token = _image_stem(model, media)
        self.per_audio_token = _audio_stem(model, media)
        self.per_target = 2.0 * model.width * vocabulary
        self.per_embedding = 2.0 * model.width * model.embed_dim

    def sequence(
        self,
        *,
        tokens: Any,
        squares: Any,
        image_tokens: Any,
        audio_tokens: Any,
        targets: Any,
        embeddings: Any,
    ) -> Any:
        """Cost of a sequence with these totals; ``squares`` is the sum of its segments' squared
        lengths.
        """
        return (
            self.per_token * tokens
            + self.per_square * squares
            + self.per_image_token * image_tokens
            + self.per_audio_token * audio_tokens
            + self.per_target * targets
            + self.per_embedding * embeddings
        )


def _tower(kind: str, config: str, positions: float) -> float:
    """Of one position of a pretrained transformer that sees ``positions``, without its first
    convolution.
    """
    facts = json.loads(config)["config"]
    names = ("d_model", "encoder_layers", "encoder_ffn_dim") if kind == "audio" else _VISION_SIZES
    width, layers, hidden = (facts.get(name, _VISION_DEFAULTS.get(name, 0)) for name in names)
    hidden = hidden or facts.get("mlp_ratio", 4) * width
    return float(layers * (2 * (4 * width**2 + 2 * width * hidden) + 4 * width * positions))


def _image_stem(model: ModelConfig, media: MediaConfig) -> float:
    pixels = media.image_patch**2
    if model.image_stem == "pretrained":
        rows, columns = media.image_grid(media.image_height, media.image_width)
        return _tower("image", model.image_tower_config, rows * columns)
    if model.image_stem == "patch":
        return 2.0 * 3 * pixels * model.width
    channels = model.stem_width
    cost = 2.0 * 9 * 3 * channels * pixels
    while pixels > 1:
        pixels //= 4
        wider = min(2 * channels, 8 * model.stem_width)
        cost += 2.0 * 9 * channels * wider * pixels
        channels = wider
    return cost + 2.0 * channels * model.width


def _audio_stem(model: ModelConfig, media: MediaConfig) -> float:
    if (
        model.audio_stem == "pretrained"
    ):  # a clip costs a whole window, which its tokens are too few to tell
        return _tower("audio", model.audio_tower_config, 1500) * media.frames_per_token / 2
    frames, bands, channels, cost = media.frames_per_token, media.mel_bins, 1, 0.0
    while frames > 1 or channels == 1:
        frames, bands = max(1, frames // 2), -(-bands // 2)
        wider = model.stem_width if channels == 1 else 2 * model.stem_width
        cost += 2.0 * 9 * channels * wider * frames * bands
        channels = wider
    cost += 2.0 * channels * bands * model.width
    if model.audio_stem == "rnn":
        units = model.width // 2
        cost += 2 * (2.0 * 3 * units * (model.width + units)) + 2.0 * 2 * units * model.width
    return cost
