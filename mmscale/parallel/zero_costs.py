"""DeepSpeed's stages for dry runs: its engine asks real ranks, so FSDP stands in, which divides the
same things.

Stage 1 as FSDP that keeps gathered weights, and whole gradients; stage 2 as that, and DeepSpeed's
bucket for gradients, ``reduce_bucket_size`` elements; stage 3 as FSDP, and the bucket, a share of
the weights in the compute type, and one of the gradients, which stays. What is offloaded waits on
the host here as there: moments, float32 weights and gradients; under stage 3 the share in the
compute type too.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from mmscale.config import Config
from mmscale.model.count import count_parameters
from mmscale.parallel.costs import StandIn
from mmscale.parallel.deepspeed_config import deepspeed_settings
from mmscale.parallel.ranks import Ranks
from mmscale.parallel.strategy import COMPUTE_TYPES

_BUCKET = 5e8  # elements, DeepSpeed's default


def stand_in(stage: int, config: Config, world: int) -> StandIn:
    """The config under FSDP, and what DeepSpeed holds beside it. Raises `UserError` for a DeepSpeed
    JSON that contradicts the config.
    """
    compute = COMPUTE_TYPES[config.train.precision]
    ranks = Ranks(
        rank=0, world=world, local_rank=0, local_world=1, device=torch.device("cpu"), parts=1
    )
    zero = deepspeed_settings(config, ranks, compute)["zero_optimization"]
    updated_there, kept_there = _waits(zero, "optimizer"), _waits(zero, "param")
    sharded = copy.deepcopy(config)
    parallel = sharded.parallel
    parallel.strategy, parallel.deepspeed_config = "fsdp", ""
    parallel.reshard = stage == 3
    # In files or in memory: neither is on the device.
    parallel.offload = "cpu" if updated_there else "none"

    parameters = count_parameters(config.model, config.media)["total"]
    bucket, share = int(zero.get("reduce_bucket_size", _BUCKET)), -(-parameters // world)
    # Of the largest gradient a copy stays on the device, through which all go to the host.
    through = config.model.vocab_size * config.model.width if updated_there else 0
    gradients, copies = 0 if updated_there else 4 * share, compute.itemsize * share
    beside = {
        1: {"gradients": 4 * parameters},
        2: {"buffers": (bucket + through) * compute.itemsize},
        3: {"buffers": bucket * 4 + gradients + (0 if kept_there else copies)},
    }[stage]
    # DeepSpeed divides the gradients of every pass; FSDP keeps them whole until the last.
    return StandIn(
        config=sharded,
        one_pass=True,
        memory=beside,
        host=copies if stage == 3 and kept_there else 0,
    )


def _waits(zero: dict[str, Any], what: str) -> bool:
    """Whether ``what`` (optimizer or param) lies on the host, as the config or the JSON says."""
    place = zero.get(f"offload_{what}")
    return isinstance(place, dict) and place.get("device", "none") != "none"
