"""DeepSpeed's stages for dry runs: its engine asks real ranks, so FSDP stands in, which divides the same things.

Stage 1 as FSDP that keeps gathered weights, and whole gradients; stage 2 as that, and DeepSpeed's bucket for gradients,
``reduce_bucket_size`` elements; stage 3 as FSDP, and the bucket, a share of the weights in the compute type, and one
of the gradients, which stays.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from mmscale.config import ZERO_STAGES, Config
from mmscale.plan.dry_run import DryStep

_BUCKET = 5e8  # elements, DeepSpeed's default


def stand_in(config: Config) -> Config:
    """The config under FSDP."""
    found = copy.deepcopy(config)
    parallel = found.parallel
    parallel.reshard = ZERO_STAGES[parallel.strategy] == 3
    parallel.strategy, parallel.deepspeed_config = "fsdp", ""
    if parallel.offload == "nvme":
        parallel.offload, parallel.offload_dir = "cpu", ""  # neither is on the device
    return found


def with_buckets(dry: DryStep, config: Config, world: int, parameters: int) -> DryStep:
    """``dry`` of the stand-in for ``config``, and what DeepSpeed holds beside it."""
    import torch

    from mmscale.parallel.deepspeed_config import deepspeed_settings
    from mmscale.parallel.ranks import Ranks
    from mmscale.parallel.strategy import COMPUTE_TYPES

    stage, compute = ZERO_STAGES[config.parallel.strategy], COMPUTE_TYPES[config.train.precision]
    settings = deepspeed_settings(config, Ranks(0, world, 0, 1, torch.device("cpu"), 1), compute)
    bucket = int(settings["zero_optimization"].get("reduce_bucket_size", _BUCKET))
    share = -(-parameters // world)
    size = {
        1: 4 * parameters,
        2: bucket * compute.itemsize,
        3: bucket * 4 + share * (compute.itemsize + 4),
    }[stage]
    kind = "gradients" if stage == 1 else "buffers"
    memory = dict(dry.memory)
    for name in (kind, "total"):
        memory[name] = memory.get(name, 0) + size
    return replace(dry, memory=memory)
