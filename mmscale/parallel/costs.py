"""What a strategy says of its costs, for the planner of memory and time (`mmscale.capacity`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmscale.config import Config
from mmscale.gpu import GpuSpec


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """What a dry run runs for a strategy, and what the strategy holds beside what is measured."""

    config: Config  # the config itself, or one under a strategy that divides the same things
    # Nothing waits whole for the last pass: one micro-batch shows what all of a step's hold.
    one_pass: bool = False
    memory: Mapping[str, int] = field(default_factory=dict)  # bytes per rank, by kind
    host: int = 0  # bytes in the memory of its host


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What each rank sends per step, and over what."""

    # Bytes given to collectives in the step's last micro-batch and the update, by operator.
    sent: Mapping[str, int]
    passes: float  # micro-batches of a step
    world: int
    per_node: int
    gpu: GpuSpec

    def bytes_of(self, operator: str) -> int:
        """Of all operators with this word in their names."""
        return sum(size for name, size in self.sent.items() if operator in name)

    def rate(self, ranks: int) -> float:
        """Bytes a second among so many neighbouring ranks."""
        return self.gpu.link if ranks <= self.per_node else self.gpu.network


@dataclass(frozen=True, kw_only=True)
class CommunicationTime:
    """The time that a step's communication takes; seconds."""

    hideable_s: float = 0.0  # what may run behind computing
    exposed_s: float = 0.0  # what computing waits for
    behind: float = 1.0  # the share of a step's computing that it may run behind


def sent_share(ranks: int) -> float:
    """Of the bytes that so many ranks gather or sum: what each rank sends."""
    return (ranks - 1) / ranks if ranks > 1 else 0.0
