"""The rules by which a recipe fits itself to the training samples (docs/recipes.md has them).

Pure: facts in, config keys out, so that a rule can be tried without data. Only what a recipe's file
leaves open is filled in, and what the user says goes over all of it.
"""

from __future__ import annotations

import math
from typing import Any

from mmscale.recipes.training_facts import TrainingFacts

# (samples below, width, layers, heads, key-value heads, size of a head, hidden, stem, embedding):
# the shapes of configs/model/tiny.yaml, small.yaml and base.yaml.
_SHAPES: tuple[tuple[float, tuple[int, ...]], ...] = (
    (30_000, (192, 4, 6, 3, 32, 512, 24, 96)),
    (1_000_000, (512, 8, 8, 4, 64, 1408, 64, 256)),
    (math.inf, (768, 14, 12, 4, 64, 2304, 96, 512)),
)
_SHAPE_KEYS = (
    "width", "layers", "heads", "kv_heads", "head_dim", "hidden", "stem_width", "embed_dim",
)  # fmt: skip
# (median side below, side of the picture the model sees, side of a patch), pixels. The patch keeps
# a picture within about 200 tokens and small ones above 16.
_PICTURES = ((24, 16, 4), (48, 32, 4), (96, 64, 8), (192, 128, 16), (math.inf, 224, 16))
_SEQ_LEN = 1024
_STEP_SAMPLES = 64  # seen in a step, about
_SEEN = 100_000  # samples in a run, over all passes
_PASSES = (4, 40)  # through the set, least and most


def fit(facts: TrainingFacts) -> dict[str, Any]:
    """Keys of a config for these samples, as a tree."""
    media = _media(facts)
    model: dict[str, Any] = dict(zip(_SHAPE_KEYS, _shape(facts.samples), strict=True))
    if facts.samples < _SHAPES[0][0]:
        model["dropout"] = 0.1  # few samples are learned by heart
    tokens = _tokens(facts, media)
    long = max(_SEQ_LEN, 1 << math.ceil(math.log2(tokens.longest + 64)))
    sequences = _power_of_two(_STEP_SAMPLES * tokens.mean / long, 2, 64)
    per_step = max(1.0, sequences * long / tokens.mean)
    passes = min(max(_SEEN / facts.samples, _PASSES[0]), _PASSES[1])
    steps = max(50, math.ceil(passes * facts.samples / per_step / 10) * 10)
    return {
        "media": media,
        "model": model,
        "data": {
            "seq_len": long,
            "sequences": sequences,
            "tokenizer": {"vocab_size": _vocabulary(facts)},
        },
        "train": {
            "steps": steps,
            "micro_batch": 1,
            "checkpoint_every": max(25, steps // 4),
            "ema": 0.99,
            "optimizer": {
                "lr": 2.0e-3 if model["width"] < 512 else 1.0e-3,
                "warmup_steps": max(10, steps // 12),
                "weight_decay": 0.1,
            },
        },
    }


class _Tokens:
    """What a sample takes of a sequence."""

    def __init__(self, mean: float, longest: float) -> None:
        self.mean, self.longest = mean, longest


def _tokens(facts: TrainingFacts, media: dict[str, Any]) -> _Tokens:
    picture = sound = 0.0
    if facts.width:
        picture = media["image_height"] * media["image_width"] / media["image_patch"] ** 2
    if facts.seconds:
        per_token = media["mel_hop"] * media["frames_per_token"] / media["sample_rate"]
        sound = facts.seconds / per_token
    text = facts.characters / 3  # of a byte-level BPE, about
    mean = picture + sound / 2 + text + 4
    return _Tokens(mean, picture + sound + text + 4)


def _media(facts: TrainingFacts) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if facts.width:
        median = math.sqrt(facts.width * facts.height)
        side, patch = next((side, patch) for below, side, patch in _PICTURES if median < below)
        # Of a shape such as theirs: pictures are brought to one size.
        stretch = math.sqrt(facts.width / facts.height)
        if not 0.7 < stretch < 1.4:
            stretch = min(max(stretch, 0.5), 2.0)
            out["image_width"] = max(patch, round(side * stretch / patch) * patch)
            out["image_height"] = max(patch, round(side / stretch / patch) * patch)
        else:
            out["image_width"] = out["image_height"] = side
        out["image_patch"] = patch
    if facts.seconds:
        low = facts.rate <= 8000
        out |= {
            "sample_rate": 8000 if low else 16000,
            "mel_bins": 64 if low else 80,
            "mel_window": 256 if low else 400,
            "mel_hop": 80 if low else 160,
            "frames_per_token": 8,
            "max_audio_s": float(max(1, math.ceil(facts.seconds))),
        }
    return out


def _shape(samples: int) -> tuple[int, ...]:
    return next(shape for below, shape in _SHAPES if samples < below)


def _vocabulary(facts: TrainingFacts) -> int:
    """One entry for each 100 bytes of text, between 512 and 16,384."""
    return _power_of_two(facts.text_bytes / 100, 512, 16_384)


def _power_of_two(value: float, least: int, most: int) -> int:
    return min(max(1 << round(math.log2(max(value, 1))), least), most)
