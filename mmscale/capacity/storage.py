"""What a run asks of the storage of its data: bytes per second, room on each node's disk, money."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from mmscale.capacity.stored_set import StoredSet, look_at
from mmscale.config import Config
from mmscale.data.planning.groups import LEAST_BLOCKS, LEAST_SEQUENCES
from mmscale.data.planning.lanes import choose_lanes, choose_window_groups
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

# Of a sequence that packing fills (docs/benchmarks.md).
_FILLED = 0.99


@dataclass(frozen=True, kw_only=True)
class StorageTerms:
    """What storage gives and costs; 0: not said.

    Attributes:
        gbps: Gbit/s that a node reads at the most.
        egress_per_tb: price of 10^12 bytes that leave the servers.
        requests_per_million: price of so many requests.
    """

    gbps: float = 0.0
    egress_per_tb: float = 0.0
    requests_per_million: float = 0.0

    def check(self) -> None:
        """Raise `UserError` for what no storage gives."""
        for name, value in asdict(self).items():
            if not 0 <= value < math.inf:
                option = name if name != "gbps" else "storage-gbps"
                raise UserError(f"--{option.replace('_', '-')} {value:g}: a number, 0 or above")


@dataclass(frozen=True, kw_only=True)
class SetNeeds:
    """Of one data set; of all nodes together where nothing else is said.

    Attributes:
        window_bytes: that a node holds at a time, at the least.
        fetched_bytes, requests: from servers, over the run.
    """

    samples: int
    bytes_per_sample: float
    bytes_per_step: float
    bytes_per_epoch: float
    requests_per_epoch: float
    epochs: float
    fetched_bytes: float
    requests: float
    window_bytes: float
    texts_counted: bool


@dataclass(frozen=True, kw_only=True)
class StorageNeeds:
    """Of a run, as far as its sets are known.

    Attributes:
        unknown: by set, why, and what would make it known.
        node_bytes_per_step: that each node reads.
        node_bytes_per_s: while a step takes what the rest of the plan says.
        window_bytes: of remote sets, that a node's disk holds at a time, at the least.
        cache_bytes: that it may hold.
        keeps_all: whether that is every remote set, so that a node fetches nothing twice.
        price: of what is fetched, in the currency of the `StorageTerms`.
        step_s: seconds of a step that waits for its data where storage is too slow.
    """

    nodes: int
    sets: dict[str, SetNeeds]
    unknown: dict[str, str]
    node_bytes_per_step: float
    node_bytes_per_s: float
    window_bytes: float
    cache_bytes: float
    keeps_all: bool
    fetched_bytes: float
    requests: float
    price: float
    step_s: float


@dataclass(frozen=True, kw_only=True)
class Storage:
    """The sets of a config in their storage. Make it by `look`."""

    config: Config
    terms: StorageTerms
    known: dict[str, StoredSet]
    unknown: dict[str, str]

    @classmethod
    def look(cls, config: Config, terms: StorageTerms, tokenizer: Tokenizer | None) -> Storage:
        """Look at every set whose index is on this machine."""
        known, unknown = {}, {}
        for name, set_config in config.data.sets.items():
            try:
                known[name] = look_at(set_config, config, tokenizer)
            except UserError as error:
                unknown[name] = str(error)
        return cls(config=config, terms=terms, known=known, unknown=unknown)

    def needs(
        self, *, world: int, per_node: int, parts: int, steps: float, step_s: float
    ) -> StorageNeeds:
        """For ``steps`` steps of ``step_s`` seconds, on ``world`` ranks, ``per_node`` on a machine,
        of which ``parts`` share their data.
        """
        nodes = -(-world // per_node)
        remote = sum(stored.remote_bytes for stored in self.known.values())
        cache = self.config.data.cache.max_gb * 1e9
        keeps_all = remote <= cache
        sets = {
            name: self._of_set(name, stored, nodes=nodes, steps=steps, keeps_all=keeps_all)
            for name, stored in self.known.items()
        }
        share = max(1 / nodes, parts / world)
        node_bytes = share * sum(needs.bytes_per_step for needs in sets.values())
        fetched = sum(needs.fetched_bytes for needs in sets.values())
        requests = sum(needs.requests for needs in sets.values())
        prices = self.terms.egress_per_tb / 1e12, self.terms.requests_per_million / 1e6
        least_s = 8 * node_bytes / (self.terms.gbps * 1e9) if self.terms.gbps else 0.0
        return StorageNeeds(
            nodes=nodes,
            sets=sets,
            unknown=self.unknown,
            node_bytes_per_step=node_bytes,
            node_bytes_per_s=node_bytes / step_s,
            window_bytes=sum(needs.window_bytes for needs in sets.values()),
            cache_bytes=cache,
            keeps_all=keeps_all,
            fetched_bytes=fetched,
            requests=requests,
            price=fetched * prices[0] + requests * prices[1],
            step_s=max(step_s, least_s),
        )

    def _of_set(
        self, name: str, stored: StoredSet, *, nodes: int, steps: float, keeps_all: bool
    ) -> SetNeeds:
        data, set_config = self.config.data, self.config.data.sets[name]
        weights = sum(other.weight for other in data.sets.values()) or 1.0
        per_step = set_config.weight / weights * data.sequences
        per_epoch = max(1.0, stored.tokens / (_FILLED * data.seq_len))
        epochs = steps * per_step / per_epoch
        if set_config.max_epochs:
            epochs = min(epochs, float(set_config.max_epochs))
        times = times_fetched(epochs, nodes, keeps_all)
        remote = stored.remote_bytes / stored.bytes if stored.bytes else 0.0
        return SetNeeds(
            samples=stored.samples,
            bytes_per_sample=stored.bytes / stored.samples,
            bytes_per_step=stored.bytes * min(per_step / per_epoch, 1.0),
            bytes_per_epoch=stored.bytes,
            requests_per_epoch=stored.requests,
            epochs=epochs,
            fetched_bytes=times * stored.remote_bytes,
            requests=times * stored.requests,
            window_bytes=remote * self._window_bytes(stored, nodes),
            texts_counted=stored.counted,
        )

    def _window_bytes(self, stored: StoredSet, nodes: int) -> float:
        """By the rules of the plan (`groups`, `lanes`), but for the sizes of single groups."""
        data = self.config.data
        blocks_per_sequence = _FILLED * data.seq_len * stored.blocks / max(1.0, stored.tokens)
        group = data.group_blocks or max(
            LEAST_BLOCKS, math.ceil(LEAST_SEQUENCES * blocks_per_sequence)
        )
        groups = max(1, math.ceil(stored.blocks / group))
        lanes = data.lanes or choose_lanes(data.sequences, groups)
        held = window_bytes(
            lanes=math.ceil(lanes / nodes),
            window_groups=data.window_groups or choose_window_groups(lanes),
            group_blocks=group,
            block_bytes=stored.bytes / stored.blocks,
        )
        return min(held, stored.bytes)


def window_bytes(
    *, lanes: int, window_groups: int, group_blocks: float, block_bytes: float
) -> float:
    """What a node's disk must hold at a time: the open window of each of its lanes."""
    return lanes * window_groups * group_blocks * block_bytes


def times_fetched(epochs: float, nodes: int, keeps_all: bool) -> float:
    """How many times a set is fetched by all nodes together.

    Once an epoch. Where every node keeps what it has had, only what an epoch deals to another node
    than any before: an epoch deals a node one ``nodes``-th of the set, drawn anew.
    """
    if not keeps_all or epochs <= 1:
        return epochs
    return nodes * (1 - (1 - 1 / nodes) ** epochs)
