"""What a run begins with instead of drawn weights (``model.init_from``): a release, or a Qwen3
model's text path.
"""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist
from torch import nn

from mmscale.config import ModelConfig
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError
from mmscale.release.layout import TOKENIZER
from mmscale.release.open_release import fill_from_release, is_release, read_release
from mmscale.release.qwen3 import load_qwen3, qwen3_tokenizer

# Numbers of a model that no tensor's shape shows: with others the same weights are another
# function.
_SHAPELESS = ("rope_theta", "norm_eps", "base_width")


def load_initial_weights(model: nn.Module, config: ModelConfig) -> None:
    """Copy the weights of ``config.init_from`` into a model that was just initialised, whole or
    sharded.

    Every rank reads its own rows; the first one alone checks a release's hashes. Linear heads that
    a release does not have stay as they were initialised.

    Raises:
        UserError: neither a release nor a Qwen3 model, of other sizes, or damaged.
    """
    folder = Path(config.init_from)
    if not is_release(folder):
        load_qwen3(model, config)
        return
    first = not dist.is_initialized() or dist.get_rank() == 0
    release = read_release(folder, verify=first)
    for name in _SHAPELESS:
        ours, theirs = getattr(config, name), getattr(release.config.model, name)
        if ours != theirs:
            raise UserError(
                f"model.{name}={ours:g}: {folder} was trained with {theirs:g}, and with another "
                f"its weights are another function; set model.{name}={theirs:g}"
            )
    fill_from_release(model, release, new="class_heads.")


def initial_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a release or a Qwen3 folder. Raises `UserError` if it cannot be used."""
    return Tokenizer.load(folder / TOKENIZER) if is_release(folder) else qwen3_tokenizer(folder)
