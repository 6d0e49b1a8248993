"""The plan of a run's data: what every step holds, and which rank reads it, before a byte of payload is read."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from mmscale import prf
from mmscale.config import Config, SetConfig
from mmscale.data.corpus import Corpus
from mmscale.data.mixture import Mixture
from mmscale.data.order import SequenceOrder
from mmscale.data.segments import SampleSizes, sample_sizes, text_fields
from mmscale.data.text_lengths import token_counts
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

_CACHED_STEPS = 8


@dataclass
class PlannedSet:
    """One data set, opened and measured."""

    name: str
    config: SetConfig
    corpus: Corpus
    sizes: SampleSizes
    order: SequenceOrder
    first_task: int  # number of its first task, counted over all sets


@dataclass(frozen=True)
class PlannedSequence:
    """One packed sequence of a step."""

    number: int  # position inside the step
    set_index: int
    epoch: int
    samples: NDArray[np.int64]
    tokens: int
    cost: float  # in tokens' worth of linear layers


@dataclass(frozen=True)
class PlannedStep:
    """Everything all ranks must agree on about a step."""

    step: int
    sequences: list[PlannedSequence]
    targets: float  # supervised positions of the step, over all ranks
    embeddings: int  # <|embed|> tokens of the step, over all ranks
    tokens: int  # real tokens of the step, over all ranks


class Plan:
    """A pure function from step to sequences.

    Args:
        config: the run's config; only its seed, data, media and model shape are read.
        tokenizer: gives the lengths of texts.
        progress: show bars while the text is measured for the first time.

    Raises:
        UserError: a set cannot be opened, or none of its samples can be used.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, progress: bool = False) -> None:
        data = config.data
        self.sequences = data.sequences
        self.seq_len = data.seq_len
        self.sets: list[PlannedSet] = []
        tasks = 0
        for name, set_config in data.sets.items():
            corpus = Corpus.open(set_config.shards)
            counts = token_counts(corpus, text_fields(set_config.tasks), tokenizer, progress)
            sizes = sample_sizes(name, set_config, corpus, counts, tokenizer, config.media, data.seq_len)
            order = SequenceOrder(
                sizes.length,
                data.seq_len,
                block=data.block,
                group_blocks=data.group_blocks,
                window_groups=data.window_groups,
                key=prf.derive_key(config.seed, "order", name),
            )
            self.sets.append(PlannedSet(name, set_config, corpus, sizes, order, tasks))
            tasks += len(set_config.tasks)
        self._mixture = Mixture(list(data.sets), [one.weight for one in data.sets.values()])
        # Attention's share of a block's arithmetic grows with the square of the segment: products of
        # queries and keys, and of weights and values, against the four projections and the feed-forward.
        model = config.model
        projections = model.width * model.head_dim * (2 * model.heads + 2 * model.kv_heads)
        self._attention_cost = (
            2 * model.heads * model.head_dim / (projections + 3 * model.width * model.hidden)
        )
        self._steps: OrderedDict[int, PlannedStep] = OrderedDict()
        self.fingerprint = self._fingerprint(config, tokenizer)

    def step(self, step: int) -> PlannedStep:
        """What step ``step`` ≥ 0 holds."""
        found = self._steps.get(step)
        if found is None:
            found = self._steps[step] = self._make_step(step)
            if len(self._steps) > _CACHED_STEPS:
                self._steps.popitem(last=False)
        return found

    def share(self, step: int, rank: int, world: int) -> list[PlannedSequence]:
        """The sequences of one rank: equally many on every rank, and costs as equal as a greedy deal makes them."""
        assert self.sequences % world == 0, "check_world was not called"
        room, load = [self.sequences // world] * world, [0.0] * world
        mine: list[PlannedSequence] = []
        for sequence in sorted(self.step(step).sequences, key=lambda one: (-one.cost, one.number)):
            taker = min((r for r in range(world) if room[r]), key=lambda r: (load[r], r))
            room[taker] -= 1
            load[taker] += sequence.cost
            if taker == rank:
                mine.append(sequence)
        return sorted(mine, key=lambda one: one.number)

    def epochs(self, steps: int) -> dict[str, float]:
        """How many epochs of each set ``steps`` steps see."""
        seen = self._mixture.turns_before(steps * self.sequences).tolist()
        return {one.name: n / one.order.sequences_per_epoch for one, n in zip(self.sets, seen, strict=True)}

    def _make_step(self, step: int) -> PlannedStep:
        sequences = []
        targets, embeddings, tokens = 0.0, 0, 0
        for number in range(self.sequences):
            set_index, turn = self._mixture.turn(step * self.sequences + number)
            planned = self.sets[set_index]
            epoch, samples = planned.order.sequence(turn)
            sizes = planned.sizes
            length = int(sizes.length[samples].sum())
            cost = length + self._attention_cost * float(sizes.squares[samples].sum())
            sequences.append(PlannedSequence(number, set_index, epoch, samples, length, cost))
            targets += float(sizes.targets[samples].sum(dtype=np.float64))
            embeddings += int(sizes.embeddings[samples].sum())
            tokens += length
        return PlannedStep(step, sequences, targets, embeddings, tokens)

    def _fingerprint(self, config: Config, tokenizer: Tokenizer) -> str:
        """Identity of the order: equal fingerprints give equal batches at every step."""
        facts = {
            "prf": prf.VERSION,
            "seed": config.seed,
            "tokenizer": tokenizer.digest,
            "media": asdict(config.media),
            "seq_len": self.seq_len,
            "sequences": self.sequences,
            "order": [config.data.block, config.data.group_blocks, config.data.window_groups],
            "sets": [
                {
                    "name": one.name,
                    "manifests": one.corpus.digests,
                    "weight": one.config.weight,
                    "tasks": [asdict(task) for task in one.config.tasks],
                    "augment": asdict(one.config.augment),
                }
                for one in self.sets
            ],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_world(sequences: int, world: int) -> None:
    """Raise `UserError` listing the world sizes that work if ``world`` ranks cannot share a step equally."""
    if sequences % world:
        fitting = [str(n) for n in range(1, sequences + 1) if sequences % n == 0]
        raise UserError(
            f"data.sequences={sequences} cannot be shared by {world} ranks; "
            f"use {', '.join(fitting)} ranks, or make it a multiple of {world}"
        )
