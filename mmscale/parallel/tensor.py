"""Tensor parallelism: the matrices of every block, split over neighbouring ranks (Shoeybi et al.,
2019).

By PyTorch's own DTensor plans. Queries, keys, values, gate and up are split by columns, their
counterparts by rows, so that a rank computes some heads and some hidden units, and what it adds to
the residual stream is summed. Embedding, norms, stems and heads are whole on each of these ranks,
which compute the same with them.
"""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from mmscale.config import ModelConfig
from mmscale.errors import UserError
from mmscale.model.blocks import Block
from mmscale.model.fusion import FusionTransformer


def split_matrices(model: FusionTransformer, config: ModelConfig, mesh: DeviceMesh) -> None:
    """Split every block over ``mesh``, which has one axis. Raises `UserError` for what cannot be
    split.
    """
    ranks = mesh.size()
    if config.fusion == "rnn" or config.untied:
        what = "model.fusion=rnn" if config.fusion == "rnn" else f"model.untied={config.untied}"
        raise UserError(f"parallel.tensor={ranks}: {what} is not split; use parallel.tensor=1")
    for key, size in (
        ("heads", config.heads),
        ("kv_heads", config.kv_heads),
        ("hidden", config.hidden),
    ):
        if size % ranks:
            raise UserError(
                f"parallel.tensor={ranks}: does not divide model.{key}={size}; use a divisor"
            )
    for block in model.blocks:
        assert isinstance(block, Block)
        parallelize_module(
            block,
            mesh,
            {
                # The gradient of what all columns read is summed once, at the norm.
                "attention_norm": _whole_output(),
                "attention.q_proj": ColwiseParallel(),
                "attention.k_proj": ColwiseParallel(),
                "attention.v_proj": ColwiseParallel(),
                "attention.q_norm": SequenceParallel(sequence_dim=2, use_local_output=True),
                "attention.k_norm": SequenceParallel(sequence_dim=2, use_local_output=True),
                "attention.o_proj": RowwiseParallel(),
                "feed_forward_norm": _whole_output(),
                "feed_forward.gate_proj": ColwiseParallel(),
                "feed_forward.up_proj": ColwiseParallel(),
                "feed_forward.down_proj": RowwiseParallel(),
            },
        )
        block.attention.heads //= ranks
        block.attention.kv_heads //= ranks


def _whole_output() -> PrepareModuleOutput:
    return PrepareModuleOutput(
        output_layouts=Replicate(), desired_output_layouts=Replicate(), use_local_output=False
    )
