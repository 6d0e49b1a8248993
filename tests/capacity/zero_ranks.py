"""Run under torchrun: the peak of tensors and the FLOPs of a step under each stage of ZeRO, as JSON
lines.

``zero_ranks.py DEEPSPEED_JSON``
"""

import gc
import json
import sys
from collections.abc import Iterator

import torch
from test_dry_plan import small_config

from mmscale.capacity.dry_batch import dry_batch
from mmscale.capacity.memory_tracker import Tracker
from mmscale.parallel.process_end import end_after
from mmscale.parallel.ranks import join_ranks, leave_ranks
from mmscale.parallel.strategy import build_strategy


def alive() -> Iterator[torch.Tensor]:
    """Every tensor of the process; DeepSpeed keeps some where no interface shows them."""
    for object_ in gc.get_objects():
        if issubclass(type(object_), torch.Tensor):
            yield object_


def main() -> None:
    ranks = None
    for name in ("zero1", "zero2", "zero3"):
        config = small_config(strategy=name, threads=1, deepspeed_config=sys.argv[1])
        ranks = ranks or join_ranks(config.parallel)
        gc.collect()
        # Held until the end: a storage that is freed meanwhile would leave its identity to one that
        # is to be counted.
        before = {
            id(storage): storage for storage in (tensor.untyped_storage() for tensor in alive())
        }
        strategy = build_strategy(config, ranks)
        strategy.model.train()
        batch = dry_batch(config, 2)

        def step(strategy=strategy, batch=batch) -> None:
            strategy.forward_backward(batch, last=True)
            strategy.update(0, 1e-4, lambda norm: torch.zeros(()))

        step()
        gc.collect()
        tracker = Tracker()
        with tracker:
            tracker.count(
                "held", [tensor for tensor in alive() if id(tensor.untyped_storage()) not in before]
            )
            step()
        if ranks.is_first:
            print(json.dumps([name, tracker.peak, tracker.flops]), flush=True)
        del strategy, step
    leave_ranks()


if __name__ == "__main__":
    end_after(main)
