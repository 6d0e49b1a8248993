"""``parallel.strategy: zero2``: DeepSpeed's stage 2 (`mmscale.parallel.zero`)."""

from __future__ import annotations

from mmscale.parallel.zero import ZeroStrategy
from mmscale.registry import STRATEGIES


class Zero2Strategy(ZeroStrategy):
    """Moments and gradients are divided over the ranks; weights are whole."""

    name, stage = "zero2", 2
    offloads = ("cpu",)
    plan_note = (
        "DeepSpeed divides as fsdp does, which was run in its place, and holds a bucket for "
        "gradients beside"
    )


STRATEGIES.register("zero2", Zero2Strategy)
