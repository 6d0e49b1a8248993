"""A model without memory: names and shapes, to be compared or filled."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mmscale.config import Config
from mmscale.errors import UserError
from mmscale.model.fusion import FusionTransformer


def build_empty(config: Config) -> FusionTransformer:
    """The model on the meta device: names and shapes, no memory.

    Raises:
        UserError: sizes of which torch can make no tensor; a forged config may say anything.
    """
    try:
        with torch.device("meta"), _WithoutDraws():
            model = FusionTransformer(config.model, config.media)
    except UserError:
        raise
    except (RuntimeError, TypeError, OverflowError, ValueError) as error:
        reason = str(error).split("\n")[0][:200]
        raise UserError(
            f"model: cannot be built ({reason}); correct the sizes in model and media"
        ) from None
    assert not list(model.named_buffers()), "checkpoints and releases hold parameters only"
    return model


class _WithoutDraws(TorchFunctionMode):
    """Leaves initial values undrawn: tensors without memory have none, and torch imports its
    compiler to draw them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
