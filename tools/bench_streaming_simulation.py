"""Part 1 of `bench_streaming`: what all machines together fetch, by simulation.

The order is that of a real plan over an index of two million samples without payload; what each
machine fetches, keeps and forgets follows the rules of a run's prefetching. Requests and bytes are
those of the index's extents. A change of machines in mid-epoch is a run that is stopped and
resumed: every machine keeps its disk and nothing else.
"""

from __future__ import annotations

import json
import subprocess
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bench_plan import bench_tokenizer, config_of, count_tokens, write_index
from bench_streaming_mosaic import Ordering

from mmscale.data.planning.step_plan import Plan
from mmscale.errors import UserError

SAMPLES, SHARD_SAMPLES = 2_000_000, 10_000
SEQUENCES = 192  # of a step: 1, 6, 8 and 64 machines divide it
LANES = 64  # as many as machines at the most
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


class Window(NamedTuple):
    """A window of groups in an epoch, as one lane reads it."""

    epoch: int
    lane: int
    number: int

    def is_before(self, other: Window) -> bool:
        """Whether the lane of both is through with this one when it has reached ``other``."""
        return self.lane == other.lane and self < other


class Draw(NamedTuple):
    """What a sequence of a step needs: blocks of the set, in a window of a lane."""

    epoch: int
    lane: int
    window: int
    left: int  # that its lane has yet to draw from the window
    blocks: list[int]


class Machine:
    """The disk of one machine, which holds ``room`` blocks: which of them a run fetches and drops.

    A block is held from its first use until every window that it was drawn in is done with; then it
    stays while there is room, and the one that was released last goes first.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._released: OrderedDict[int, None] = OrderedDict()
        self._holds: dict[int, set[Window]] = {}  # by block
        self._blocks: dict[Window, set[int]] = {}
        self.fetched: list[int] = []
        self.most = 0

    def step(self, draws: Iterable[Draw]) -> None:
        """Everything this machine reads at a step."""
        done = set[Window]()
        for draw in draws:
            window = Window(draw.epoch, draw.lane, draw.window)
            # Of a lane that several machines read, another one may draw the last of a window.
            done.update(open for open in self._blocks if open.is_before(window))
            self._blocks.setdefault(window, set()).update(draw.blocks)
            for block in draw.blocks:
                self._use(block, window)
            if not draw.left:
                done.add(window)
        self.most = max(self.most, len(self._holds))
        for window in sorted(done):
            self._release(window)
        self._shrink(0)

    def restart(self) -> None:
        """The run is resumed: nothing is held, the disk is as it was."""
        for window in list(self._blocks):
            self._release(window)
        self._shrink(0)

    def _use(self, block: int, window: Window) -> None:
        if block not in self._holds:
            if block in self._released:
                del self._released[block]
            else:
                self._shrink(1)
                self.fetched.append(block)
            self._holds[block] = set()
        self._holds[block].add(window)

    def _release(self, window: Window) -> None:
        for block in sorted(self._blocks.pop(window)):
            self._holds[block].discard(window)
            if not self._holds[block]:
                del self._holds[block]
                self._released[block] = None

    def _shrink(self, more: int) -> None:
        while self._released and len(self._holds) + len(self._released) + more > self._room:
            self._released.popitem()


def simulate(folder: Path, mosaic: str = "", samples: int = SAMPLES) -> Iterator[Simulated]:
    """Every world and cache; with an interpreter that has it, mosaicml-streaming's own order
    too.
    """
    write_index(folder, samples)
    config = config_of(folder)
    config.data.sequences, config.data.lanes = SEQUENCES, LANES
    plan = Plan(config, bench_tokenizer(), cost=count_tokens)
    planned = plan.sets[0]
    blocks = -(-samples // planned.layout.block)
    assert planned.dataset.extents is not None, "an index of remote shards"
    extents = [planned.dataset.extents.of_block(number) for number in range(blocks)]
    requests = np.array([len(of_block) for of_block in extents])
    sizes = np.array([sum(extent.length for extent in of_block) for of_block in extents])
    steps = planned.order.sequences_per_epoch // SEQUENCES
    drawn = [_draws(plan, step) for step in range(EPOCHS * steps)]
    for world in WORLDS:
        for cache in CACHES:
            machines = run(drawn, world, int(cache * blocks))
            fetched = np.concatenate([np.array(m.fetched, np.int64) for m in machines])
            yield Simulated(
                side="mmscale", world=world, cache=cache,
                times=float(sizes[fetched].sum() / sizes.sum()) / EPOCHS,
                requests=float(requests[fetched].sum()) / EPOCHS,
                per_4mb=float(4e6 * requests[fetched].sum() / sizes[fetched].sum()),
                held=max(machine.most for machine in machines) / blocks,
            )  # fmt: skip
            if mosaic:
                yield from _theirs(mosaic, world, cache, samples)


def run(drawn: list[list[Draw]], world: tuple[int, ...], room: int) -> list[Machine]:
    """All machines, after all steps."""
    machines = [Machine(room) for _ in range(max(world))]
    per_epoch = len(drawn) // EPOCHS
    before = world[0]
    for step, draws in enumerate(drawn):
        nodes = world[step % per_epoch * len(world) // per_epoch]
        if nodes != before:
            for machine in machines:
                machine.restart()
        before = nodes
        share = len(draws) // nodes  # as `Plan.node_share`
        for number in range(nodes):
            machines[number].step(draws[number * share : (number + 1) * share])
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


def _draws(plan: Plan, step: int) -> list[Draw]:
    block = plan.sets[0].layout.block
    return [
        Draw(
            sequence.epoch,
            sequence.lane,
            sequence.window,
            sequence.left,
            np.unique(sequence.samples // block).tolist(),
        )
        for sequence in plan.step(step).sequences
    ]


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
