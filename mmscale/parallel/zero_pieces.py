"""DeepSpeed's flat pieces, by the names of the parameters they belong to.

Every rank holds, for each group of parameters, one flat float32 tensor of weights and as long ones
of moments. Stages 1 and 2 cut the concatenation of a group's parameters at equal lengths, wherever
that falls; stage 3 cuts every parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from mmscale.optim.ema import take_in
from mmscale.optim.optimizer_kind import OptimizerKind
from mmscale.parallel.ranks import Ranks

# Of stage 3, of stages 1 and 2, and of stage 1 in bf16.
_FLATS = (
    "fp32_partitioned_groups_flat",
    "single_partition_of_fp32_groups",
    "fp32_groups_flat_partition",
)


@dataclass(frozen=True)
class Piece:
    """A run of one parameter's elements in this rank's flat tensor of a group."""

    group: int
    start: int  # in the flat tensor
    count: int
    first: int  # in the parameter


class Pieces:
    """Reads and writes weights, moments and averages by parameter.

    Args:
        zero: DeepSpeed's optimizer of stage 1, 2 or 3.
        kind: of the optimiser that updates the pieces.
    """

    def __init__(
        self,
        model: nn.Module,
        shapes: dict[str, torch.Size],
        zero: Any,
        ranks: Ranks,
        kind: OptimizerKind,
    ) -> None:
        self._zero, self._ranks, self._shapes, self._kind = zero, ranks, shapes, kind
        self._stage3 = hasattr(zero, "fp32_partitioned_groups_flat")
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._pieces = dict(
            self._of_stage3(names) if self._stage3 else self._of_stages_1_and_2(names)
        )
        self._averages: list[Tensor] = []

    def allocate(self, updates: int, averages: bool) -> None:
        """Moments as they are after so many updates, zero until something is written."""
        for group, flat in enumerate(self._flats()):
            with self._present(group):
                self._zero.optimizer.state[flat] = self._kind.state(flat, updates)
        if averages:
            self._averages = [flat.detach().clone() for flat in self._flats()]

    def average(self, decay: float, step: int, skip: Tensor) -> None:
        """Take the weights after ``step`` into their averages (see `mmscale.optim.ema`)."""
        take_in(zip(self._averages, self._flats(), strict=True), decay, step, skip)

    @torch.no_grad()
    def read(self, kind: str, name: str, mesh: DeviceMesh) -> DTensor:
        """One parameter's values, float32, this rank's rows of it. Called on every rank."""
        shape = self._shapes[name]
        whole = torch.zeros(shape.numel(), device=self._ranks.device)
        for piece in self._pieces.get(name, []):
            with self._present(piece.group):
                part = self._flat(kind, piece.group)[piece.start : piece.start + piece.count]
                whole[piece.first : piece.first + piece.count] = part.to(whole.device)
        dist.all_reduce(whole)  # no two ranks hold the same element
        return distribute_tensor(whole.view(shape), mesh, [Shard(0)], src_data_rank=None)

    @torch.no_grad()
    def write(self, kind: str, name: str, whole: Tensor) -> None:
        """Replace one parameter's values by ``whole``, float32 of its shape."""
        values = whole.reshape(-1)
        for piece in self._pieces.get(name, []):
            with self._present(piece.group):
                part = self._flat(kind, piece.group)[piece.start : piece.start + piece.count]
                part.copy_(values[piece.first : piece.first + piece.count])

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the weights that the model computes with to those that were written."""
        zero = self._zero
        if not self._stage3:
            zero.update_lp_params()
            return
        zero._partition_all_parameters()  # what is gathered is forgotten
        for group in range(len(zero.fp16_groups)):
            with self._present(group):
                zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def _flats(self) -> list[Tensor]:
        for where in _FLATS:
            if hasattr(self._zero, where):
                flats: list[Tensor] = getattr(self._zero, where)
                return flats
        raise AssertionError(f"DeepSpeed's {type(self._zero).__name__} keeps its weights elsewhere")

    def _flat(self, kind: str, group: int) -> Tensor:
        if kind == "average":
            return self._averages[group]
        flat = self._flats()[group]
        if kind == "weight":
            return flat.detach()
        moment: Tensor = self._zero.optimizer.state[flat][kind]
        return moment

    @contextmanager
    def _present(self, group: int) -> Iterator[None]:
        """While inside, a group that waits in files is in memory; afterwards it is written back."""
        swapped = self._stage3 and self._zero._swappable_optimizer_subgroup(group)
        if swapped:
            self._zero._optimizer_states_and_gradient_swap_in(group)
        try:
            yield
        finally:
            if swapped:
                self._zero._optimizer_states_and_gradient_swap_out(group)

    def _of_stage3(self, names: dict[int, str]) -> Iterator[tuple[str, list[Piece]]]:
        for group, parameters in enumerate(self._zero.fp16_groups):
            start = 0
            for parameter in parameters:
                size = parameter.partition_numel()
                first = self._ranks.rank * size
                count = max(0, min(size, parameter.ds_numel - first))
                yield names[id(parameter)], [Piece(group, start, count, first)] if count else []
                start += size

    def _of_stages_1_and_2(self, names: dict[int, str]) -> Iterator[tuple[str, list[Piece]]]:
        # Stage 1 in bf16 is another class, which calls them otherwise.
        groups = (
            self._zero.bit16_groups
            if hasattr(self._zero, "bit16_groups")
            else self._zero.bf16_groups
        )
        for group, parameters in enumerate(groups):
            for parameter in parameters:
                mapping = parameter._hp_mapping
                if mapping is not None:
                    flat, own = mapping.hp_fragment_address, mapping.lp_fragment_address
                    yield names[id(parameter)], [Piece(group, flat.start, flat.numel, own.start)]
