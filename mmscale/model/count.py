"""How many parameters a model has, by part; built on the meta device, so that no memory is
needed.
"""

from __future__ import annotations

import torch

from mmscale.config import MediaConfig, ModelConfig
from mmscale.model.fusion import FusionTransformer

# The first part whose word is in a parameter's name has it.
_PARTS = {
    "image stem": "image_stem",
    "audio stem": "audio_stem",
    "embedding": "embedding.",
    "norms": "norm",
    "attention": "attention.",
    "recurrence": "mixer.",
    "feed-forward": "feed_forward.",
    "heads": "",
}


def count_parameters(config: ModelConfig, media: MediaConfig) -> dict[str, int]:
    """Parameters by part, only those there are; ``total`` comes last. ``config.vocab_size`` must be
    set.
    """
    with torch.device("meta"):
        model = FusionTransformer(config, media)
    counts = dict.fromkeys(_PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[next(part for part, word in _PARTS.items() if word in name)] += parameter.numel()
    present = {part: count for part, count in counts.items() if count}
    return {**present, "total": sum(present.values())}
