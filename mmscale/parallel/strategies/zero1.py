"""``parallel.strategy: zero1``: DeepSpeed's stage 1 (`mmscale.parallel.zero`)."""

from __future__ import annotations

from mmscale.parallel.zero import ZeroStrategy
from mmscale.registry import STRATEGIES


class Zero1Strategy(ZeroStrategy):
    """Moments are divided over the ranks; weights and gradients are whole."""

    name, stage = "zero1", 1
    plan_note = "DeepSpeed divides as fsdp does, which was run in its place"


STRATEGIES.register("zero1", Zero1Strategy)
