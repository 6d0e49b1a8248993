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
from dataclasses import replace
from typing import Any

from mmscale.capacity.dry_run import DryStep
from mmscale.config import ZERO_STAGES, Config

_BUCKET = 5e8  # elements, DeepSpeed's default


def stand_in(config: Config, world: int) -> Config:
    """The config under FSDP. Raises `UserError` for a DeepSpeed JSON that contradicts it."""
    found = copy.deepcopy(config)
    parallel = found.parallel
    parallel.reshard = ZERO_STAGES[parallel.strategy] == 3
    parallel.strategy, parallel.deepspeed_config = "fsdp", ""
    # In files or in memory: neither is on the device.
    parallel.offload = "cpu" if _waits(_settings(config, world), "optimizer") else "none"
    return found


def with_buckets(dry: DryStep, config: Config, world: int, parameters: int) -> DryStep:
    """``dry`` of the stand-in for ``config``, and what DeepSpeed holds beside it."""
    from mmscale.parallel.strategy import COMPUTE_TYPES

    stage, compute = ZERO_STAGES[config.parallel.strategy], COMPUTE_TYPES[config.train.precision]
    settings = _settings(config, world)
    bucket = int(settings["zero_optimization"].get("reduce_bucket_size", _BUCKET))
    share = -(-parameters // world)
    updated_there, kept_there = _waits(settings, "optimizer"), _waits(settings, "param")
    # Of the largest gradient a copy stays on the device, through which all go to the host.
    through = config.model.vocab_size * config.model.width if updated_there else 0
    gradients, copies = 0 if updated_there else 4 * share, compute.itemsize * share
    size = {
        1: 4 * parameters,
        2: (bucket + through) * compute.itemsize,
        3: bucket * 4 + gradients + (0 if kept_there else copies),
    }[stage]
    kind = "gradients" if stage == 1 else "buffers"
    memory = dict(dry.memory)
    for name in (kind, "total"):
        memory[name] = memory.get(name, 0) + size
    return replace(dry, memory=memory, host=dry.host + (copies if stage == 3 and kept_there else 0))


def _settings(config: Config, world: int) -> dict[str, Any]:
    import torch

    from mmscale.parallel.deepspeed_config import deepspeed_settings
    from mmscale.parallel.ranks import Ranks
    from mmscale.parallel.strategy import COMPUTE_TYPES

    ranks = Ranks(0, world, 0, 1, torch.device("cpu"), 1)
    return deepspeed_settings(config, ranks, COMPUTE_TYPES[config.train.precision])


def _waits(settings: dict[str, Any], what: str) -> bool:
    """Whether ``what`` (optimizer or param) lies on the host, as the config or the JSON says."""
    place = settings["zero_optimization"].get(f"offload_{what}")
    return isinstance(place, dict) and place.get("device", "none") != "none"
