"""Context parallelism: the positions of every sequence, split over neighbouring ranks.

Each computes the blocks for its own positions and sees the keys and values of all, which are
gathered in every block (as in Llama 3's training: Grattafiori et al., 2024, section 3.3.2). What
the stems make, and what the losses read, is whole on every rank; targets are dealt, and the other
losses count for a share each.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from mmscale.errors import UserError
from mmscale.model.fusion import FusionTransformer
from mmscale.model.positions import Positions


class SharedPositions(Positions):
    """An equal, unbroken run of positions for each rank of ``mesh``, which has one axis."""

    shared = True

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh, self._ranks, self._rank = mesh, mesh.size(), mesh.get_local_rank()
        self.part = 1.0 / self._ranks
        self.every = slice(self._rank, None, self._ranks)

    def mine(self, x_BL: Tensor) -> Tensor:
        """See `Positions`."""
        length = x_BL.shape[1] // self._ranks
        self.first = self._rank * length
        return x_BL[:, self.first : self.first + length]

    def whole(self, x_BL: Tensor) -> Tensor:
        """See `Positions`."""
        split = DTensor.from_local(x_BL.contiguous(), self._mesh, [Shard(1)], run_check=False)
        return split.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])


def split_positions(model: FusionTransformer, mesh: DeviceMesh, seq_len: int) -> None:
    """Split every sequence over ``mesh``. Raises `UserError` for what cannot be split."""
    ranks, config = mesh.size(), model.config
    if config.fusion == "rnn" or config.untied:
        what = "model.fusion=rnn" if config.fusion == "rnn" else f"model.untied={config.untied}"
        raise UserError(f"parallel.context={ranks}: {what} is not split; use parallel.context=1")
    if seq_len % ranks:
        raise UserError(
            f"parallel.context={ranks}: does not divide data.seq_len={seq_len}; use a divisor"
        )
    model.positions = SharedPositions(mesh)
