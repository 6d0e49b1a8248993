"""``parallel.strategy: zero3``: DeepSpeed's stage 3 (`mmscale.parallel.zero`)."""

from __future__ import annotations

from mmscale.parallel.zero import ZeroStrategy
from mmscale.registry import STRATEGIES


class Zero3Strategy(ZeroStrategy):
    """Moments, gradients and weights are divided over the ranks."""

    name, stage = "zero3", 3
    offloads = ("cpu", "nvme")
    plan_note = (
        "DeepSpeed divides as fsdp does, which was run in its place, and holds a bucket for "
        "gradients beside"
    )


STRATEGIES.register("zero3", Zero3Strategy)
