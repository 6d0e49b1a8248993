"""The global norm of gradients that are split over ranks in different ways, and clipping by it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients to a global norm of at most ``max_norm`` (0: leave them); returns the
    norm before.

    float32 scalar, equal on every rank. A sharded gradient's parts are summed over the ranks that
    hold them, once for all gradients that are split alike.
    """
    split_alike: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for parameter in model.parameters():
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            mesh, placements = gradient.device_mesh, gradient.placements
            groups = tuple(
                mesh.get_group(axis)
                for axis, placement in enumerate(placements)
                if not placement.is_replicate()
            )
            assert not any(placement.is_partial() for placement in placements)
            split_alike[groups].append(gradient.to_local())
        elif gradient is not None:
            split_alike[()].append(gradient)
    squares = []
    for groups, gradients in split_alike.items():
        norms = torch._foreach_norm(
            [gradient for gradient in gradients if gradient.numel()] or [gradients[0].new_zeros(1)]
        )
        square = torch.stack([norm.float() for norm in norms]).square().sum()
        for group in groups:
            dist.all_reduce(square, group=group)
        squares.append(square)
    norm = torch.stack(squares).sum().sqrt()
    if max_norm > 0.0:
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradients in split_alike.values():
            torch._foreach_mul_(gradients, factor)
    return norm
