"""Compiling the blocks with `torch.compile`: everything in them but the mixing of positions.

All blocks share their compiled code. Attention keeps its own path: FlexAttention is compiled on a
GPU anyway, and on a CPU the sizes of its groups change with every batch.
"""

from __future__ import annotations

import os
import shutil
from functools import partial

import torch

from mmscale.errors import UserError
from mmscale.model.blocks import Block
from mmscale.model.fusion import FusionTransformer


def compile_blocks(model: FusionTransformer, device: torch.device) -> None:
    """Compile on first use; a minute or so, once per machine. Raises `UserError` where there is no
    C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"parallel.compile: needs a C++ compiler, and there is no {compiler}; install one, or "
            "set CXX"
        )
    project = torch.compile(Block.project, dynamic=False)
    combine = torch.compile(Block.combine, dynamic=False)
    for block in model.blocks:
        assert isinstance(block, Block)
        if not block.recurrent:
            block.project = partial(project, block)  # type: ignore[method-assign]
        block.combine = partial(combine, block)  # type: ignore[method-assign]
