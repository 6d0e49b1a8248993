"""Initial weights as a function of (seed, parameter name, element), so any shard can be filled by itself.

Matrices and convolutions: normal with variance 1/fan-in, so that activations keep their size; the two
matrices that write to the residual stream are divided by sqrt(2 x layers) (GPT-2: Radford et al., 2019).
Embedding: normal, 0.02. Norm weights one, biases zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from mmscale import prf
from mmscale.config import ModelConfig
from mmscale.model.width import initial_factor

_CHUNK = 1 << 22  # elements drawn at once; bounds the float64 temporaries


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter in place; parameters may be DTensors sharded along their first axis."""
    for name, parameter in model.named_parameters():
        constant, deviation = _rule(name, parameter, config)
        local, first = _local_part(parameter)
        if deviation == 0.0:
            local.fill_(constant)
            continue
        key = prf.derive_key(seed, "weights", name)
        flat = local.view(-1)
        for start in range(0, flat.numel(), _CHUNK):
            part = flat[start : start + _CHUNK]
            part.copy_(torch.from_numpy(prf.normal(key, part.numel(), first + start)).mul_(deviation))


def _rule(name: str, parameter: Tensor, config: ModelConfig) -> tuple[float, float]:
    """(constant, standard deviation) of a parameter."""
    if name == "contrast_log_scale":
        return math.log(10.0), 0.0
    if name == "contrast_bias":
        return -3.0, 0.0  # about the log-odds of a match among twenty candidates
    if parameter.dim() == 1:
        return (1.0 if name.endswith("norm.weight") else 0.0), 0.0
    if name == "embedding.weight":
        return 0.0, 0.02
    deviation = initial_factor(name, parameter.dim(), config) / math.sqrt(parameter[0].numel())
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        deviation /= math.sqrt(2.0 * config.layers)
    return 0.0, deviation


@torch.no_grad()
def fill(parameter: Tensor, values: Tensor) -> None:
    """Copy ``values``, of the whole parameter's shape, into the part of it that is here."""
    assert values.shape == parameter.shape
    local, first = _local_part(parameter)
    local.view(-1).copy_(values.reshape(-1)[first : first + local.numel()])


@torch.no_grad()
def fill_rows(parameter: Tensor, rows: Any) -> None:
    """As `fill`, from whatever gives the rows of its slices, such as a tensor in a file; no other row is asked for."""
    local, first = _local_part(parameter)
    if local.numel():
        start = first // math.prod(parameter.shape[1:])
        local.copy_(rows[start : start + len(local)])


def _local_part(parameter: Tensor) -> tuple[Tensor, int]:
    """(this rank's elements, index of the first of them in the whole parameter)."""
    if not isinstance(parameter, DTensor):
        return parameter, 0
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    assert tuple(shape[1:]) == tuple(parameter.shape[1:]), "only the first axis is sharded"
    return parameter.to_local(), offset[0] * math.prod(parameter.shape[1:]) if shape else 0
