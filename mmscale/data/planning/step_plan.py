"""The plan of a run's data: what every step holds, and which rank reads it, before a byte of
payload is read.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from mmscale import prf
from mmscale.config import Config, SetConfig
from mmscale.data.index.dataset import Dataset
from mmscale.data.index.default_block import default_block
from mmscale.data.index.json_field import parse_json
from mmscale.data.planning import mixture
from mmscale.data.planning.array_cache import ArrayCache
from mmscale.data.planning.editions import EditionHistory
from mmscale.data.planning.epoch_order import OrderedSequence, SequenceOrder
from mmscale.data.planning.groups import COUNT_VERSION, GroupCounts, GroupLayout, count_groups
from mmscale.data.planning.lanes import Place, choose_lanes, choose_window_groups
from mmscale.data.planning.mixture_schedule import Change, MixtureSchedule, Slot
from mmscale.data.planning.rank_balance import deal
from mmscale.data.planning.sample_sizes import SampleMeasure, text_fields, total_names
from mmscale.data.planning.token_counts import ABSENT, named_documents, token_counts
from mmscale.data.tokenizer import Tokenizer
from mmscale.data.worker_pool import available_cores
from mmscale.errors import SampleFault, UserError
from mmscale.registry import OBJECTIVES

_CACHED_STEPS = 8
_LOOK = 1 << 20  # samples at a time


@dataclass(kw_only=True)
class PlannedSet:
    """One data set, opened and measured."""

    name: str
    config: SetConfig
    dataset: Dataset
    measure: SampleMeasure
    counts: GroupCounts
    layout: GroupLayout
    lanes: int
    window_groups: int
    order: SequenceOrder
    first_task: int  # number of its first task, counted over all sets


@dataclass(frozen=True, kw_only=True)
class PlannedSequence:
    """One packed sequence of a step."""

    number: int  # position inside the step
    set_index: int
    epoch: int
    samples: NDArray[np.int64]
    parts: NDArray[np.int64]  # of samples that are cut (``long: split``); else 0
    tokens: int
    # By objective: what the step's sequences before this one hold of what its loss is a mean over.
    before: dict[str, float]
    cost: float  # estimated floating-point operations of its forward pass
    lane: int
    window: int  # of its epoch: the groups that it shares blocks with
    # Sequences that its lane has yet to draw from this window; 0: the lane is done with it.
    left: int


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """Everything all ranks must agree on about a step."""

    step: int
    sequences: list[PlannedSequence]
    # By objective: what its loss is a mean over, such as target tokens or embeddings; of all ranks.
    counts: dict[str, float]
    tokens: int  # real tokens of the step, over all ranks


class Plan:
    """A pure function from step to sequences.

    Args:
        config: the run's config; only its seed, data and media are read.
        tokenizer: gives the lengths of texts.
        history: what the sets held at earlier steps; None: what they hold now.
        resume_step: the step at which the run begins or resumes.
        progress: show bars while lengths are measured for the first time.
        cost: estimated floating-point operations of a sequence's forward pass, from its totals by
            name (`mmscale.model.flops.Flops.sequence`); sequences are dealt to the ranks by it.

    Raises:
        UserError: a set cannot be opened, none of its samples can be used, or it holds other shards
            than when the run was stopped.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        history: EditionHistory | None = None,
        resume_step: int = 0,
        progress: bool = False,
        *,
        cost: Callable[[Mapping[str, float]], float],
    ) -> None:
        self.sequences = config.data.sequences
        self.seq_len = config.data.seq_len
        self.sets: list[PlannedSet] = []
        tasks = 0
        for name, set_config in config.data.sets.items():
            self.sets.append(
                _open_set(name, set_config, config, tokenizer, first_task=tasks, progress=progress)
            )
            tasks += len(set_config.tasks)
        self.history = history or EditionHistory()
        for planned_set in self.sets:
            self.history.resume(
                planned_set.name,
                planned_set.dataset,
                planned_set.order.sequences_per_epoch,
                resume_step,
                config.data.accept_changes,
            )
        changes = _changes(config, self.history)
        self._schedule = MixtureSchedule(
            [planned_set.name for planned_set in self.sets],
            changes,
            [planned_set.config.max_epochs for planned_set in self.sets],
            per_step=self.sequences,
            lanes=[planned_set.lanes for planned_set in self.sets],
        )
        self._cost = cost
        self._steps: OrderedDict[int, PlannedStep] = OrderedDict()
        # Of one step, world and node.
        self._dealt: tuple[tuple[int, int, range], list[list[int]]] = ((-1, 0, range(0)), [])
        self._base_facts = {
            "prf": prf.VERSION,
            "counts": COUNT_VERSION,
            "mixture": mixture.VERSION,
            "seed": config.seed,
            "tokenizer": tokenizer.digest,
            "media": asdict(config.media),
            "seq_len": self.seq_len,
            "sequences": self.sequences,
            "contrast_sequences": config.data.contrast_sequences,
            "order": [
                config.data.block,
                config.data.group_blocks,
                config.data.window_groups,
                config.data.lanes,
            ],
        }

    @property
    def steps(self) -> int | None:
        """Whole steps there are before every set was repeated as often as it may be; None: without
        end.
        """
        end = self._schedule.end
        return None if end is None else end // self.sequences

    def step(self, step: int) -> PlannedStep:
        """What step ``step`` ≥ 0 holds.

        Raises:
            UserError: the data ends before it, or it was drawn from shards that have been exchanged
                since.
        """
        planned_step = self._steps.get(step)
        if planned_step is None:
            planned_step = self._steps[step] = self._make_step(step)
            if len(self._steps) > _CACHED_STEPS:
                self._steps.popitem(last=False)
        return planned_step

    @property
    def is_remote(self) -> bool:
        """Whether some set is fetched from a server as it is read."""
        return any(planned.dataset.extents is not None for planned in self.sets)

    def share(
        self, step: int, rank: int, world: int, node: range | None = None
    ) -> list[PlannedSequence]:
        """The sequences of one rank: equally many on every rank, at costs as equal as can be (see
        `deal`).

        Args:
            step: from 0.
            rank: of ``world``.
            world: ranks; it divides the sequences of a step.
            node: the ranks that share this one's machine; None: all. What one machine reads is
                dealt among its own ranks.
        """
        node = range(world) if node is None else node
        assert rank in node
        mine = self.node_share(step, node, world)
        if self._dealt[0] != (step, world, node):
            costs = [sequence.cost for sequence in mine]
            self._dealt = ((step, world, node), deal(costs, len(node)))
        return [mine[number] for number in self._dealt[1][rank - node.start]]

    def node_share(self, step: int, node: range, world: int) -> list[PlannedSequence]:
        """What the ranks ``node`` of ``world`` read at a step: neighbouring sequences, so whole
        lanes wherever that divides evenly.
        """
        per_rank = self.sequences // world
        return self.step(step).sequences[node.start * per_rank : node.stop * per_rank]

    def epochs(self, steps: int) -> dict[str, float]:
        """How many epochs of each set ``steps`` steps see."""
        seen = self._schedule.epochs_before(steps * self.sequences)
        return {
            planned_set.name: epochs for planned_set, epochs in zip(self.sets, seen, strict=True)
        }

    def fingerprint(self, step: int) -> str:
        """Identity of all that decided the steps before ``step``: equal fingerprints mean equal
        batches.

        What begins later (a change of weights, a new set, an edition) is not in it, so a run may be
        resumed after such an addition.
        """
        phases = self._schedule.facts(step * self.sequences)
        used = {name for _, shares in phases for name in shares}
        sets = {
            planned_set.name: {
                "tasks": [asdict(task) for task in planned_set.config.tasks],
                "augment": asdict(planned_set.config.augment),
                "long": planned_set.config.long,
                "editions": [
                    asdict(edition)
                    for edition in self.history.editions[planned_set.name]
                    if edition.from_step < step
                ],
            }
            for planned_set in self.sets
            if planned_set.name in used
        }
        facts = {**self._base_facts, "phases": phases, "sets": sets}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _make_step(self, step: int) -> PlannedStep:
        if self.steps is not None and step >= self.steps:
            raise UserError(
                f"step {step}: after {self.steps} steps every set was repeated max_epochs times; "
                "raise max_epochs of a set"
            )
        sequences = []
        names = total_names()
        counted = np.zeros(len(names))
        turns, places = self._turns(step)
        for number, (turn, place, ordered) in enumerate(
            zip(turns, places, self._ordered(turns, places), strict=True)
        ):
            of = dict(zip(names, ordered.totals, strict=True))
            before = dict(zip(names, counted.tolist(), strict=True))
            sequences.append(
                PlannedSequence(
                    number=number,
                    set_index=turn.set_index,
                    epoch=turn.epoch,
                    samples=ordered.samples,
                    parts=ordered.parts,
                    tokens=int(of["tokens"]),
                    before={name: before[name] for name in OBJECTIVES.names()},
                    cost=float(self._cost(of)),
                    lane=place.lane,
                    window=ordered.window,
                    left=min(ordered.window_end, place.end) - place.at - 1,
                )
            )
            counted += ordered.totals
        sums = dict(zip(names, counted.tolist(), strict=True))
        counts = {name: sums[name] for name in OBJECTIVES.names()}
        return PlannedStep(
            step=step, sequences=sequences, counts=counts, tokens=int(sums["tokens"])
        )

    def _turns(self, step: int) -> tuple[list[Slot], list[Place]]:
        """What fills every number of a step, and from where in its epoch's row."""
        turns, places = [], []
        for position in range(step * self.sequences, (step + 1) * self.sequences):
            turn = self._schedule.turn(position)
            if not turn.current:
                raise UserError(
                    f"step {step}: drawn from shards of data.sets.{self.sets[turn.set_index].name} "
                    "that were exchanged since; restore them to look at it"
                )
            turns.append(turn)
            places.append(self._schedule.place(position))
        return turns, places

    def _ordered(self, turns: list[Slot], places: list[Place]) -> list[OrderedSequence]:
        """The sequence of every turn; those of a set are asked for together."""
        ordered: list[OrderedSequence | None] = [None] * len(turns)
        for number, planned in enumerate(self.sets):
            mine = [at for at, turn in enumerate(turns) if turn.set_index == number]
            wanted = [(turns[at].epoch, places[at].at) for at in mine]
            for at, sequence in zip(mine, planned.order.sequences(wanted), strict=True):
                ordered[at] = sequence
        return [sequence for sequence in ordered if sequence is not None]


def check_world(sequences: int, world: int) -> None:
    """Raise `UserError` listing the world sizes that work if ``world`` ranks cannot share a step
    equally.
    """
    if sequences % world:
        fitting = [str(n) for n in range(1, sequences + 1) if sequences % n == 0]
        raise UserError(
            f"data.sequences={sequences} cannot be shared by {world} ranks; "
            f"use {', '.join(fitting)} ranks, or make it a multiple of {world}"
        )


def _open_set(
    name: str,
    set_config: SetConfig,
    config: Config,
    tokenizer: Tokenizer,
    *,
    first_task: int,
    progress: bool,
) -> PlannedSet:
    data = config.data
    fields = {field for task in set_config.tasks for field in task.fields()}
    dataset = Dataset.open(set_config.shards, data.cache, block=data.block, fields=fields)
    derived = ArrayCache.beside(dataset)
    counts = token_counts(dataset, text_fields(set_config.tasks), tokenizer, derived, progress)
    for field, counted in counts.items():
        if not _appears(counted.array):
            raise UserError(
                f"data.sets.{name}.tasks: no sample has {field}{_instead(dataset, field)}"
            )
    measure = SampleMeasure(
        config=set_config, dataset=dataset, text_tokens=counts, tokenizer=tokenizer,
        media=config.media, seq_len=data.seq_len,
    )  # fmt: skip
    block = data.block or default_block(dataset.manifests)
    groups = _group_counts(
        name, set_config, config, dataset, tokenizer,
        block=block, measure=measure, derived=derived, progress=progress,
    )  # fmt: skip
    layout = GroupLayout(len(dataset), block, groups.blocks)
    lanes = data.lanes or choose_lanes(data.sequences, layout.groups)
    window_groups = data.window_groups or choose_window_groups(lanes)
    order = SequenceOrder(
        layout, groups.sequences, measure, data.seq_len, window_groups=window_groups,
        open_groups=lanes * window_groups, key=prf.derive_key(config.seed, "order", name),
    )  # fmt: skip
    return PlannedSet(
        name=name, config=set_config, dataset=dataset, measure=measure, counts=groups,
        layout=layout, lanes=lanes, window_groups=window_groups, order=order,
        first_task=first_task,
    )  # fmt: skip


def _appears(counts: NDArray[np.uint32]) -> bool:
    """Whether any sample has the text; looks no further than the first."""
    return any(
        (counts[start : start + _LOOK] != ABSENT).any() for start in range(0, len(counts), _LOOK)
    )


def _instead(dataset: Dataset, field: str) -> str:
    """What the first sample's JSON has, where ``field`` is a path in it."""
    try:
        first_json = (
            parse_json(dataset.read(field, 0).decode()) if field.startswith("json.") else None
        )
    except (SampleFault, UnicodeDecodeError):
        return ""
    return (
        f"; the first one's JSON has {', '.join(first_json)}"[:200]
        if isinstance(first_json, dict)
        else ""
    )


def _depends(
    set_config: SetConfig, config: Config, dataset: Dataset, tokenizer: Tokenizer, sizes: list[int]
) -> list[str]:
    """Everything the packing of a set depends on, but for the seed."""
    facts = {
        "version": COUNT_VERSION,
        "media": asdict(config.media),
        "tasks": [asdict(task) for task in set_config.tasks],
        "sizes": sizes,
        "long": set_config.long,
    }
    named = named_documents(dataset.manifests, text_fields(set_config.tasks))
    return [json.dumps(facts, sort_keys=True), tokenizer.digest, *dataset.digests, *named]


def _group_counts(
    name: str, set_config: SetConfig, config: Config, dataset: Dataset, tokenizer: Tokenizer,
    *, block: int, measure: SampleMeasure, derived: ArrayCache, progress: bool,
) -> GroupCounts:  # fmt: skip
    """Kept counts, or new ones. Raises `UserError` if no sample can be used."""
    data = config.data
    sizes = [data.seq_len, block, data.group_blocks]
    file = derived.name("counts", *_depends(set_config, config, dataset, tokenizer, sizes))
    kept = derived.load(file, np.int64)
    if kept is None or len(kept.array) < 7 or not len(kept.array) % 2:
        counts = count_groups(
            len(dataset), block, measure, data.seq_len, group_blocks=data.group_blocks,
            workers=available_cores(), progress=progress, name=name,
        )  # fmt: skip
        derived.save(file, counts.to_array())
    else:
        counts = GroupCounts.from_array(kept.array)
    if not counts.samples and counts.oversize:
        raise UserError(
            f"data.sets.{name}: every sample is longer than data.seq_len={data.seq_len}; "
            f"the shortest needs {counts.shortest}"
        )
    if not counts.samples:
        needed = " or ".join("+".join(task.fields()) for task in set_config.tasks)
        raise UserError(f"data.sets.{name}: no sample has the fields its tasks need ({needed})")
    return counts


def _changes(config: Config, history: EditionHistory) -> list[Change]:
    """Weights and editions in order of their steps, as changes at positions."""
    data = config.data
    weights = {0: {name: set_config.weight for name, set_config in data.sets.items()}}
    for change in data.schedule:
        weights[change.step] = {**weights.get(change.step, {}), **change.weights}
    editions: dict[int, dict[str, int]] = {0: {}}
    for name in data.sets:
        for number, edition in enumerate(history.editions[name]):
            at = edition.from_step if number else 0
            editions.setdefault(at, {})[name] = edition.sequences_per_epoch
    return [
        Change(step * data.sequences, weights.get(step, {}), editions.get(step, {}))
        for step in sorted(weights.keys() | editions.keys())
    ]
