"""Initial weights as a function of (seed, parameter name, element), so any shard can be filled by
itself.

Matrices and convolutions: normal with variance 1/fan-in, so that activations keep their size; the
two matrices that write to the residual stream are divided by sqrt(2 x layers) (GPT-2: Radford et
al., 2019). Embedding: normal, 0.02. Norm weights one, biases zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from mmscale import prf
from mmscale.config import ModelConfig
from mmscale.model.objective import losses
from mmscale.model.stem import stem_class
from mmscale.model.width import initial_factor

_BUFFER = 1 << 24  # elements drawn before they are copied to where they stay
_PIECE = 1 << 17  # elements that a thread draws before it takes others


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter in place; parameters may be DTensors sharded in any way.

    Drawn on the host, because devices differ in the last bits of a logarithm; by as many threads as
    torch may use.
    """
    for name, parameter in model.named_parameters():
        draw(name, parameter, config, seed)


@torch.no_grad()
def draw(name: str, parameter: Tensor, config: ModelConfig, seed: int) -> None:
    """Fill what is here of one parameter."""
    constant, deviation = _rule(name, parameter, config)
    key = prf.derive_key(seed, "weights", name)
    for local, first, columns in _local_rows(parameter):
        if deviation == 0.0:
            local.fill_(constant)
            continue
        width = math.prod(parameter.shape[1:])
        rows = max(1, _BUFFER // width)
        for start in range(0, len(local), rows):
            part = local[start : start + rows]
            values = _normals(key, len(part) * width, first + start * width, np.float32(deviation))
            part.copy_(
                values.view(len(part), *parameter.shape[1:])[:, columns]
                if columns
                else values.view_as(part)
            )


def _normals(key: int, count: int, first: int, deviation: np.float32) -> Tensor:
    """`prf.normal` times ``deviation``, float32 [count] from counter ``first`` on."""
    values = np.empty(count, np.float32)

    def piece(start: int) -> None:
        end = min(start + _PIECE, count)
        prf.fill_normal(key, values[start:end], first + start)
        values[start:end] *= deviation

    starts = range(0, count, _PIECE)
    if len(starts) == 1 or torch.get_num_threads() == 1:
        for start in starts:
            piece(start)
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            list(threads.map(piece, starts))
    return torch.from_numpy(values)


def _rule(name: str, parameter: Tensor, config: ModelConfig) -> tuple[float, float]:
    """(constant, standard deviation) of a parameter."""
    factor = initial_factor(name, parameter.dim(), config)  # also says that the name is known
    for loss in losses().values():
        if name in loss.constants:
            return loss.constants[name], 0.0
    if parameter.dim() == 1:
        return _vector(name, config), 0.0
    if name == "embedding.weight":
        return 0.0, 0.02
    deviation = factor / math.sqrt(math.prod(parameter.shape[1:]))
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        deviation /= math.sqrt(2.0 * config.layers)
    return 0.0, deviation


def _vector(name: str, config: ModelConfig) -> float:
    """The constant a vector begins with, by its name."""
    if name.endswith("norm.weight"):
        return 1.0
    part, _, own = name.partition(".")
    stem = stem_class(part, config)
    known = "bias" in own.rpartition(".")[2] or (stem and own.startswith(stem.loaded))
    assert known, f"parameter {name}: a vector is named norm.weight (ones) or bias (zeros)"
    return 0.0


@torch.no_grad()
def fill(parameter: Tensor, values: Tensor) -> None:
    """Copy ``values``, of the whole parameter's shape, into the part of it that is here."""
    assert values.shape == parameter.shape
    for local, first, columns in _local_rows(parameter):
        part = values.reshape(-1)[first : first + len(local) * math.prod(parameter.shape[1:])]
        rows = part.view(len(local), *parameter.shape[1:])
        local.copy_(rows[:, columns] if columns else rows)


@torch.no_grad()
def fill_rows(parameter: Tensor, rows: Any) -> None:
    """As `fill`, from whatever gives the rows of its slices, such as a tensor in a file; no other
    row is asked for.
    """
    for local, first, columns in _local_rows(parameter):
        start = first // math.prod(parameter.shape[1:])
        here = rows[start : start + len(local)]
        local.copy_(here[:, columns] if columns else here)


def _local_rows(parameter: Tensor) -> Iterator[tuple[Tensor, int, slice | None]]:
    """What is here of a parameter, in runs of neighbouring rows.

    Yields (the rows, index of their first element in the whole parameter, which columns of the
    whole rows they are; None: all).
    """
    if not isinstance(parameter, DTensor):
        yield parameter, 0, None
        return
    local = parameter.to_local()
    if not local.numel():
        return
    rows, columns = (_indices(parameter, axis) for axis in (0, 1))
    width = math.prod(parameter.shape[1:])
    whole = len(columns) == (parameter.shape[1] if parameter.dim() > 1 else 1)
    selected = None if whole else slice(int(columns[0]), int(columns[-1]) + 1)
    breaks = (torch.nonzero(rows.diff() != 1).flatten() + 1).tolist()
    for start, end in pairwise([0, *breaks, len(rows)]):
        yield local[start:end], int(rows[start]) * width, selected


def _indices(parameter: DTensor, axis: int) -> Tensor:
    """Which rows (or columns) of the whole parameter are here."""
    if axis >= parameter.dim():
        return torch.zeros(1, dtype=torch.int64)
    numbers = torch.arange(parameter.shape[axis], device=parameter.device_mesh.device_type)
    placements: list[Placement] = []
    for placement in parameter.placements:
        if placement.is_replicate() or placement.dim != axis:  # type: ignore[attr-defined]
            placements.append(Replicate())
        elif isinstance(
            placement, _StridedShard
        ):  # by FSDP, of what tensor parallelism split before
            placements.append(_StridedShard(0, split_factor=placement.split_factor))
        else:
            placements.append(Shard(0))
    split = distribute_tensor(numbers, parameter.device_mesh, placements, src_data_rank=None)
    return split.to_local().cpu()
