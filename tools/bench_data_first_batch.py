"""The first batch of a fresh process: ``python bench_data_first_batch.py FOLDER WORKERS``.

Prints as JSON how long ``import torch`` took, seconds, and the time of day of the first batch.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    from mmscale.data.loading.fork_server import start_fork_server

    folder, workers = Path(sys.argv[1]), int(sys.argv[2])
    if workers:
        start_fork_server()  # as `mmscale train` does
    began = time.perf_counter()
    import torch

    torch_s = time.perf_counter() - began
    from bench_data_shards import config_of

    from mmscale.data.loading.assembler import Assembler
    from mmscale.data.loading.loader import MicroBatches, iterate_steps
    from mmscale.data.planning.step_plan import Plan
    from mmscale.data.tokenizer import Tokenizer
    from mmscale.model.flops import Flops

    torch.set_num_threads(1)
    config = config_of("pictures", folder)
    config.data.sequences = 1  # a step is one batch
    tokenizer = Tokenizer.load(config.data.tokenizer.file)
    cost = Flops(config.model, config.media, len(tokenizer)).sequence
    plan = Plan(config, tokenizer, cost=cost)
    data = MicroBatches(
        plan, Assembler(config, plan, tokenizer), steps=1000, micro_batch=1, rank=0, world=1
    )
    steps = iterate_steps(data, 0, workers=workers, prefetch=4, pin_memory=False)
    (batch,) = next(steps).batches
    print(json.dumps({"torch_s": torch_s, "at": time.time(), "samples": batch.samples}), flush=True)


if __name__ == "__main__":
    main()
