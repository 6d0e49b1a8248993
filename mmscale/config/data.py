"""Which data a run sees, in which order, and where its bytes lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mmscale.config.keys import key
from mmscale.config.tasks import SetConfig
from mmscale.errors import UserError


@dataclass
class WeightChange:
    """New weights from a step on."""

    step: int = key(0, "First step with these weights.", low=0)
    weights: dict[str, float] = key({}, "Weights by data set. Sets that are not named keep theirs.")


@dataclass
class CacheConfig:
    """Local copies of parts of remote shards, shared by all processes of a machine."""

    dir: str = key("", "Folder of the cache; empty: $MMSCALE_CACHE, else ~/.cache/mmscale.")
    max_gb: float = key(
        100.0,
        "Size limit in 10^9 bytes of everything in the folder: copies, transfers, indexes.",
        low=0.001,
    )
    retries: int = key(
        16,
        "Attempts after a temporary network failure, with pauses that grow to 5 s: 40 s or more.",
        low=0,
    )
    connections: int = key(16, "Transfers at a time when a machine fetches ahead.", low=1)
    ahead_s: float = key(
        30.0, "Seconds of training whose data is fetched ahead, where the cache has room.", low=0.0
    )

    def folder(self) -> Path:
        """The cache's folder; it need not exist."""
        return Path(self.dir or os.environ.get("MMSCALE_CACHE") or "~/.cache/mmscale").expanduser()


@dataclass
class TokenizerConfig:
    file: str = key("", "A tokenizer.json to use; empty: train one on the data's text.")
    vocab_size: int = key(
        1024, "Size of a newly trained vocabulary, special tokens included.", low=300
    )


@dataclass(kw_only=True)
class DataConfig:
    prepare: str = key(
        "", "Embedded data set to build first if it is missing.", choices=("", "digits")
    )
    sets: dict[str, SetConfig] = key({}, "Data sets by name.")
    schedule: list[WeightChange] = key([], "Changes of the sets' weights at given steps.")
    accept_changes: bool = key(
        False,
        "Resume although shards were replaced, added or removed. The new shards count from that "
        "step on.",
    )
    cache: CacheConfig = key(CacheConfig, "Local copies of remote shards.")
    tokenizer: TokenizerConfig = key(TokenizerConfig, "Byte-level BPE.")
    seq_len: int = key(1024, "Tokens in one packed sequence.", low=16)
    sequences: int = key(8, "Sequences in one step, over all ranks.", low=1)
    contrast_sequences: int = key(
        1,
        "contrastive: number of neighbouring sequences whose samples are each other's negatives.",
        low=1,
    )
    block: int = key(
        0,
        "Number of neighbouring samples that stay together, and that a remote set is read by; 0: "
        "16 to 256, about 4 MB.",
        low=0,
    )
    group_blocks: int = key(
        0,
        "Number of blocks whose samples are packed together; 0: at least 8, and enough for 16 "
        "sequences.",
        low=0,
    )
    window_groups: int = key(
        0,
        "Number of groups of a lane whose sequences are shuffled together; 0: so many that 16 "
        "groups are read at a time.",
        low=0,
    )
    lanes: int = key(
        0,
        "Number of parts of a set that are read side by side; divides data.sequences; 0: one for "
        "each fifty groups, at least 16 where that divides.",
        low=0,
    )
    workers: int = key(1, "Loader processes per rank; 0: load in the training process.", low=0)
    prefetch: int = key(4, "Micro-batches that each worker prepares ahead.", low=1)
    max_bad_fraction: float = key(
        0.01, "The run ends when a larger share of the samples cannot be used.", low=0.0
    )


def check_schedule(data: DataConfig) -> None:
    last = 0
    for number, change in enumerate(data.schedule):
        place = f"data.schedule[{number}]"
        if change.step <= last and number:
            raise UserError(
                f"{place}.step: {change.step} does not come after step {last}; put them in order"
            )
        last = change.step
        for name, weight in change.weights.items():
            if name not in data.sets:
                raise UserError(
                    f"{place}.weights.{name}: no such set; data.sets has {', '.join(data.sets)}"
                )
            if not weight >= 0:
                raise UserError(
                    f"{place}.weights.{name}: {weight} is below 0; use 0 to leave the set out"
                )
