"""Part 1 of `bench_streaming`: what all machines together fetch, by simulation.

The order is that of a real plan over an index of two million samples without payload; what each
machine fetches, keeps and drops is for the code of a run's prefetching to say. Requests and bytes
are those of the index's extents. A change of machines in mid-epoch is a run that is stopped and
resumed: every machine keeps its disk and nothing else.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from bench_plan import bench_tokenizer, config_of, count_tokens, write_index
from bench_streaming_mosaic import Ordering
from numpy.typing import NDArray

from mmscale.data.planning.step_plan import Plan, PlannedSequence
from mmscale.data.prefetching.lookahead import Lookahead, SampleBlock
from mmscale.errors import UserError

SAMPLES, SHARD_SAMPLES = 2_000_000, 10_000
SEQUENCES = 192  # of a step: 1, 6, 8 and 64 machines divide it
EPOCHS = 2
CACHES = (0.02, 0.1, 0.5)  # shares of the set
WORLDS: tuple[tuple[int, ...], ...] = (
    (1,),
    (8,),
    (64,),
    (8, 6, 8),
)  # machines, by part of an epoch


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What all machines together fetch, an epoch.

    Attributes:
        world: machines; several: each for an equal part of every epoch.
        held: most that one machine needed at a time, as a share of the set.
    """

    side: str
    world: tuple[int, ...]
    cache: float
    times: float
    requests: float = 0.0
    per_4mb: float = 0.0
    held: float = 0.0


class Machine:
    """The disk of one machine, of ``room`` bytes, and what a run fetches to it and drops."""

    def __init__(self, plan: _KeptPlan, sizes: NDArray[np.int64], room: int) -> None:
        self._plan, self._sizes, self._room = plan, sizes, room
        self._disk: dict[SampleBlock, None] = {}
        self._look: Lookahead | None = None
        self.fetched: list[int] = []
        self.most = 0

    def step(self, step: int, node: range, world: int) -> None:
        """Everything this machine, which has the ranks ``node`` of ``world``, reads at a step."""
        if self._look is None:
            self._look = Lookahead(
                lambda at: self._plan.node_share(at, node, world),
                [planned.layout.block for planned in self._plan.sets],
                size=lambda block: int(self._sizes[block.number]),
                is_there=self._disk.__contains__,
                start=step,
                released=self._disk,
            )
        look = self._look
        look.look(step + 1)
        while (block := look.next()) is not None:
            size = int(self._sizes[block.number])
            self._drop(look, size)
            look.take()
            self._disk[block] = None
            self.fetched.append(block.number)
        self.most = max(self.most, look.held_bytes)
        look.consumed(step)
        self._drop(look, 0)

    def restart(self) -> None:
        """The run is resumed: nothing is held, the disk is as it was."""
        self._look = None

    def _drop(self, look: Lookahead, more: int) -> None:
        for block in look.give_up(look.held_bytes + look.released_bytes + more - self._room):
            del self._disk[block]


def simulate(folder: Path, mosaic: str = "", samples: int = SAMPLES) -> Iterator[Simulated]:
    """Every world and cache; with an interpreter that has it, mosaicml-streaming's own order
    too.
    """
    write_index(folder, samples)
    config = config_of(folder)
    config.data.sequences = SEQUENCES
    plan = Plan(config, bench_tokenizer(), cost=count_tokens)
    planned = plan.sets[0]
    blocks = -(-samples // planned.layout.block)
    assert planned.dataset.extents is not None, "an index of remote shards"
    extents = [planned.dataset.extents.of_block(number) for number in range(blocks)]
    requests = np.array([len(of_block) for of_block in extents])
    sizes = np.array([sum(extent.length for extent in of_block) for of_block in extents])
    steps = planned.order.sequences_per_epoch // SEQUENCES
    kept = _KeptPlan(plan, EPOCHS * steps)
    for world in WORLDS:
        for cache in CACHES:
            machines = run(kept, sizes, world, int(cache * sizes.sum()))
            fetched = np.concatenate([np.array(m.fetched, np.int64) for m in machines])
            yield Simulated(
                side="mmscale", world=world, cache=cache,
                times=float(sizes[fetched].sum() / sizes.sum()) / EPOCHS,
                requests=float(requests[fetched].sum()) / EPOCHS,
                per_4mb=float(4e6 * requests[fetched].sum() / sizes[fetched].sum()),
                held=max(machine.most for machine in machines) / float(sizes.sum()),
            )  # fmt: skip
            if mosaic:
                yield from _theirs(mosaic, world, cache, samples)


class _KeptPlan:
    """The steps of a plan, kept: many machines ask for them."""

    def __init__(self, plan: Plan, steps: int) -> None:
        self.sets = plan.sets
        self.steps = [plan.step(step).sequences for step in range(steps)]

    def node_share(self, step: int, node: range, world: int) -> list[PlannedSequence]:
        """As `Plan.node_share`."""
        per_rank = SEQUENCES // world
        return self.steps[step][node.start * per_rank : node.stop * per_rank]


def run(
    plan: _KeptPlan, sizes: NDArray[np.int64], world: tuple[int, ...], room: int
) -> list[Machine]:
    """All machines, one rank each, after all steps."""
    machines = [Machine(plan, sizes, room) for _ in range(max(world))]
    per_epoch = len(plan.steps) // EPOCHS
    before = world[0]
    for step in range(len(plan.steps)):
        nodes = world[step % per_epoch * len(world) // per_epoch]
        if nodes != before:
            for machine in machines:
                machine.restart()
        before = nodes
        for number in range(nodes):
            machines[number].step(step, range(number, number + 1), nodes)
    return machines


def table(results: list[Simulated]) -> str:
    """For people."""
    lines = [
        "| side | machines | cache | times the set, an epoch | requests | per 4 MB | held |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results:
        world = " to ".join(map(str, row.world))
        counted = f"{row.requests:,.0f} | {row.per_4mb:.2f} | {row.held:.2%}"
        shown = counted if row.requests else " | | "
        lines.append(f"| {row.side} | {world} | {row.cache:.0%} | {row.times:,.3f} | {shown} |")
    return "\n".join(lines)


def _theirs(mosaic: str, world: tuple[int, ...], cache: float, samples: int) -> Iterator[Simulated]:
    """The library's own order, with its usual block of shuffled samples, and with the largest that
    half of its cache holds.
    """
    shards = samples // SHARD_SAMPLES
    nodes = max(world)
    # So many divide the machines of every part.
    canonical = nodes * (3 if len(set(world)) > 1 else 1)
    ordering = partial(
        Ordering, shards=shards, per_shard=SHARD_SAMPLES, nodes=nodes, canonical=canonical,
        batch=SEQUENCES * 14, cache=int(cache * shards), change=min(world) % nodes,
    )  # fmt: skip
    held = int(cache * samples / 2)
    for name, block in (("mosaic", 0), ("mosaic, tuned", max(1, held * nodes // canonical))):
        program = str(Path(__file__).with_name("bench_streaming_mosaic.py"))
        order = json.dumps(asdict(ordering(block=block)))
        done = subprocess.run(
            [mosaic, program, "order", order], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UserError(f"{mosaic}: {done.stderr.strip().splitlines()[-1]}")
        times = json.loads(done.stdout)["times"]
        yield Simulated(side=name, world=world, cache=cache, times=times)
