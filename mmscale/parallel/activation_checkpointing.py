"""Activation checkpointing: what the forward pass does not keep, the backward pass computes again
(Chen et al., 2016).

Dropout is a function of keys, so what is computed again is the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from mmscale.model.fusion import FusionTransformer

# Of a block, ``selective`` keeps what is dear to compute: products of matrices, and attention.
_KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def set_activation_checkpointing(model: FusionTransformer, how: str) -> None:
    """``none``, ``full`` or ``selective``; see the config key ``parallel.checkpointing``."""
    if how == "none":
        return
    assert how in ("full", "selective"), f"parallel.checkpointing={how}: unknown"
    run = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if how == "selective":
        run = partial(run, context_fn=partial(create_selective_checkpoint_contexts, _policy))
    model.run_block = partial(_keep_weights, run)


def _keep_weights(run: Any, block: nn.Module, *arguments: Any) -> Any:
    """``run(block, …)``, which computes again with the weights of now.

    `mmscale.parallel.compute_copies.run_in` puts copies in another type into the model, for the
    forward pass alone.
    """
    weights: dict[str, Tensor] = dict(block.named_parameters())
    if all(weight.is_leaf for weight in weights.values()):
        return run(block, *arguments)
    return run(partial(torch.func.functional_call, block, weights), arguments)


def _policy(context: Any, operator: Any, *arguments: Any, **settings: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
