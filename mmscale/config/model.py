"""The fusion transformer's sizes and choices."""

from __future__ import annotations

from dataclasses import dataclass

from mmscale.config.keys import check_head, key
from mmscale.errors import UserError
from mmscale.registry import AUDIO_STEMS, IMAGE_STEMS


@dataclass(kw_only=True)
class ModelConfig:
    """The fusion transformer. Sizes are files under configs/model/."""

    width: int = key(256, "Width of the residual stream (d_model).", low=8)
    layers: int = key(4, "Number of fusion blocks.", low=1)
    heads: int = key(4, "Number of query heads.", low=1)
    kv_heads: int = key(
        4, "Number of key and value heads; fewer than heads: grouped-query attention.", low=1
    )
    head_dim: int = key(64, "Width of one head; even.", low=2)
    hidden: int = key(768, "Width of the SwiGLU feed-forward.", low=8)
    fusion: str = key(
        "transformer",
        "What mixes positions: attention, or a GRU (small baseline).",
        choices=("transformer", "rnn"),
    )
    untied: list[str] = key(
        [],
        "Weights that text, picture and sound positions do not share: feed_forward, norm.",
    )
    base_width: int = key(
        0,
        "Width at which the learning rates were found. muP scales them to `width` "
        "(docs/optimisers.md). 0: off.",
        low=0,
    )
    rope_theta: float = key(10_000.0, "Base of the rotary frequencies.", low=1.0)
    norm_eps: float = key(1e-6, "Epsilon of every RMSNorm.", low=0.0)
    image_stem: str = key("patch", "How pictures become vectors.", choices=IMAGE_STEMS.names)
    audio_stem: str = key("conv", "How spectrograms become vectors.", choices=AUDIO_STEMS.names)
    image_tower: str = key(
        "", "pretrained: local folder of a vision transformer of the transformers library."
    )
    image_tower_trained: bool = key(
        False, "Train the tower too, not only the projection behind it."
    )
    image_tower_config: str = key(
        "", "The tower's architecture as JSON. The run fills it in from the folder."
    )
    audio_tower: str = key(
        "", "pretrained: local folder of a Whisper model, whose encoder is used."
    )
    audio_tower_trained: bool = key(
        False, "Train the encoder too, not only the projection behind it."
    )
    audio_tower_config: str = key(
        "", "The encoder's architecture as JSON. The run fills it in from the folder."
    )
    init_from: str = key(
        "",
        "Local folder to start from, weights and tokenizer: a release, or a Qwen3 model (its text "
        "path).",
    )
    stem_width: int = key(64, "Channels of the first layer of the cnn, conv and rnn stems.", low=4)
    embed_dim: int = key(128, "Width of the contrastive embeddings.", low=4)
    vocab_size: int = key(
        0, "Rows of the embedding; 0: the tokenizer's size, rounded up to 64.", low=0
    )
    classes: dict[str, list[str]] = key(
        {},
        "classify: the classes of each linear head, by the head's name. A head that is not "
        "listed gets those in the data.",
    )
    dropout: float = key(0.0, "Share of each block's two outputs that is dropped.", low=0.0)
    stochastic_depth: float = key(
        0.0,
        "Share of the sequences that skip each branch of the last block. Earlier blocks are "
        "skipped less, the first never.",
        low=0.0,
    )
    label_smoothing: float = key(
        0.0,
        "next_token, classify: share of each target that is spread over all answers.",
        low=0.0,
    )
    attention: str = key(
        "auto",
        "How attention is computed, with the same result: dense (reference), grouped (CPU), "
        "flex (GPU); auto: by device.",
        choices=("auto", "dense", "grouped", "flex"),
    )


def check_model(model: ModelConfig) -> None:
    if model.heads % model.kv_heads:
        raise UserError(
            f"model.kv_heads: {model.kv_heads} does not divide model.heads={model.heads}"
        )
    if model.head_dim % 2:
        raise UserError(
            f"model.head_dim: {model.head_dim} is odd; rotary positions need an even width"
        )
    for name in ("dropout", "stochastic_depth"):
        if not getattr(model, name) < 1.0:
            raise UserError(
                f"model.{name}: {getattr(model, name)} would drop everything; use a share below 1"
            )
    unknown = set(model.untied) - {"feed_forward", "norm"}
    if unknown:
        raise UserError(f"model.untied: {min(unknown)!r} is none of feed_forward, norm")
    if not model.label_smoothing < 1.0:
        raise UserError(
            f"model.label_smoothing: {model.label_smoothing:g} leaves no target; use 0.1"
        )
    for name, classes in model.classes.items():
        check_head("model.classes", name)
        if len(set(classes)) != len(classes) or not classes:
            raise UserError(f"model.classes.{name}: name every class once, and at least one")
