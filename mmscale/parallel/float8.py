"""The blocks' matrix products in 8-bit floating point (Micikevicius et al., 2022), by torchao.

Weights, moments and checkpoints stay as they are: operands are scaled and rounded when they are
multiplied, forward and backward, and what is multiplied is again bfloat16.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from mmscale.errors import UserError
from mmscale.model.fusion import FusionTransformer

_CAPABILITY = (8, 9)  # Ada and Hopper: the first with products of 8-bit floats
_MULTIPLE = 16  # of both sizes of a matrix, or the hardware has no product for it


def use_float8(model: FusionTransformer, recipe: str, device: torch.device) -> None:
    """Turn the blocks' linear layers into torchao's ``Float8Linear``; names of parameters stay.

    Args:
        model: not yet split. recipe: ``tensorwise`` or ``rowwise`` scales; ``emulated``: rowwise,
        computed in ordinary arithmetic. device: where it will run.

    Raises:
        UserError: torchao is not installed, or the hardware has no such products.
    """
    emulated = recipe == "emulated"
    if not emulated and (
        device.type != "cuda" or torch.cuda.get_device_capability(device) < _CAPABILITY
    ):
        device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
        raise no_products(recipe, device_name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # It warns of kernels that were built for other machines.
        logging.getLogger("torchao").setLevel(logging.ERROR)
        try:
            from torchao.float8 import Float8LinearConfig, convert_to_float8_training
        except ImportError as error:
            raise UserError(
                f"parallel.float8: needs torchao ({error}); pip install 'mmscale[float8]'"
            ) from None
        config: Any = Float8LinearConfig.from_recipe_name("rowwise" if emulated else recipe)
        convert_to_float8_training(
            model, config=replace(config, emulate=emulated), module_filter_fn=_is_multiplied
        )


def no_products(recipe: str, device_name: str) -> UserError:
    """What to say of a device that is too old."""
    return UserError(
        f"parallel.float8={recipe}: {device_name} has no 8-bit floating-point products, which come "
        "with compute capability 8.9 (Ada, Hopper and later); leave it empty, or use emulated to "
        "see what it does to the curve"
    )


def _is_multiplied(module: nn.Module, name: str) -> bool:
    """Whether a linear layer is one of the blocks', and of sizes that can be multiplied so."""
    return (
        isinstance(module, nn.Linear)
        and name.startswith("blocks.")
        and module.in_features % _MULTIPLE == 0
        and module.out_features % _MULTIPLE == 0
    )
