"""mmscale's side of `bench_streaming`: ``python bench_streaming_run.py JSON`` (see `StreamedRun`).

One machine of a run: the plan, the loaders and what fetches ahead, as `mmscale train` has them; in
the place of a model, a pause. Prints one JSON object a step.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS_IN_EPOCH = "steps"  # of the first line: {"steps": n}


@dataclass(kw_only=True)
class StreamedRun:
    """``steps`` steps on machine ``node`` of ``nodes``, one rank each.

    Attributes:
        shards: URL of the folder that has the shards and their index.
        cache: folder of the machine's cache, of at most ``max_gb``.
        epochs: instead of ``steps``, if it is not 0.
        step_s: how long a step computes, seconds.
        settings: more keys of the config's ``data``.
    """

    shards: str
    tokenizer: str
    cache: str
    max_gb: float
    node: int = 0
    nodes: int = 1
    steps: int = 0
    epochs: int = 0
    step_s: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    wanted = StreamedRun(**json.loads(sys.argv[1]))
    from mmscale.data.loading.fork_server import start_fork_server

    start_fork_server()  # as `mmscale train` does
    import torch
    from bench_streaming_shards import config_of

    from mmscale.data.loading.assembler import Assembler
    from mmscale.data.loading.loader import MicroBatches, iterate_steps
    from mmscale.data.planning.step_plan import Plan
    from mmscale.data.prefetching.prefetcher import fetch_ahead
    from mmscale.data.tokenizer import Tokenizer
    from mmscale.model.flops import Flops

    torch.set_num_threads(1)
    config = config_of(wanted.shards, Path(wanted.tokenizer))
    config.data.cache.dir, config.data.cache.max_gb = wanted.cache, wanted.max_gb
    for name, value in wanted.settings.items():
        holder, _, key = name.rpartition(".")
        setattr(getattr(config.data, holder) if holder else config.data, key, value)
    tokenizer = Tokenizer.load(config.data.tokenizer.file)
    plan = Plan(config, tokenizer, cost=Flops(config.model, config.media, len(tokenizer)).sequence)
    # The last step of an epoch may begin the next one; what that needs is not counted.
    in_epoch = plan.sets[0].order.sequences_per_epoch // plan.sequences
    _say({STEPS_IN_EPOCH: in_epoch})
    steps = wanted.steps or wanted.epochs * in_epoch
    node = range(wanted.node, wanted.node + 1)
    prefetcher = fetch_ahead(
        plan, config.data.cache, node=node, world=wanted.nodes, local_rank=0, ranks=1,
        steps=range(steps), run=f"bench-{wanted.node}",
    )  # fmt: skip
    data = MicroBatches(
        plan, Assembler(config, plan, tokenizer), steps=steps, rank=wanted.node,
        micro_batch=config.data.sequences, world=wanted.nodes, node=node,
    )  # fmt: skip
    loaded = iterate_steps(
        data, 0, workers=config.data.workers, prefetch=config.data.prefetch, pin_memory=False
    )
    for number, step in enumerate(loaded):
        prefetcher.consumed(number)
        faults = [fault for batch in step.batches for fault in batch.faults]
        assert not faults, faults[:3]
        samples = sum(batch.samples for batch in step.batches)
        _say({"step": number, "wait_s": step.wait_s, "samples": samples})
        time.sleep(wanted.step_s)
    prefetcher.close()


def _say(facts: dict[str, Any]) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
