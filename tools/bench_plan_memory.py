"""Plan against reality: the predicted peak of tensors beside the tracked one of two real ranks, and
the FLOPs of both.

    python tools/bench_plan_memory.py [small base …]

One micro-batch of two sequences of 1,024 tokens and the update, fsdp on two gloo processes, in fp32
and with full checkpointing in bf16. On CPUs, whatever the machine has: `make test-gpu` holds the
plan against a GPU's allocator.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_ranks import command_of_ranks

from mmscale.capacity.dry_run import dry_run
from mmscale.config import Config, ModelConfig, SetConfig, TaskConfig
from mmscale.strict_yaml import read_yaml

ROOT = Path(__file__).resolve().parent.parent
SEQUENCES = 2
WAYS = {
    "fp32": {"precision": "fp32", "checkpointing": "none"},
    "bf16, full checkpointing": {"precision": "bf16", "checkpointing": "full"},
}


def config_of(size: str, way: str) -> Config:
    """Pictures with captions and clips with transcripts."""
    sizes = read_yaml((ROOT / f"configs/model/{size}.yaml").read_text())
    config = Config(model=ModelConfig(**{"vocab_size": 32_768, **sizes}))
    config.model.vocab_size = config.model.vocab_size or 32_768
    config.data.seq_len, config.data.sequences = 1024, 2 * SEQUENCES
    tasks = [TaskConfig(input=["image"], target="text"), TaskConfig(input=["audio"], target="text")]
    config.data.sets = {"both": SetConfig(shards=["/none"], tasks=tasks)}
    config.parallel.strategy, config.parallel.checkpointing = "fsdp", WAYS[way]["checkpointing"]
    config.train.precision = WAYS[way]["precision"]
    return config


def measured(size: str, way: str) -> dict[str, Any]:
    """By two real processes."""
    command = command_of_ranks(__file__, 2)
    done = subprocess.run(
        [*command, "rank", size, way], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def rank(size: str, way: str) -> None:
    """One of the two."""
    from mmscale.capacity.dry_batch import dry_batch
    from mmscale.capacity.dry_run import measure_step
    from mmscale.parallel.ranks import join_ranks, leave_ranks
    from mmscale.parallel.strategy import build_strategy

    config = config_of(size, way)
    ranks = join_ranks(config.parallel)
    strategy = build_strategy(config, ranks)
    strategy.model.train()
    batch = dry_batch(config, SEQUENCES).to(ranks.device)
    step = asdict(measure_step(strategy, batch))
    leave_ranks()
    if ranks.is_first:
        print(json.dumps(step))


def main() -> None:
    if sys.argv[1:2] == ["rank"]:
        rank(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sizes", nargs="*", default=["small", "base"], help="of configs/model (default: small base)"
    )
    sizes = parser.parse_args().sizes
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    print(f"{'':<32}{'predicted':>12}{'measured':>12}{'ratio':>8}{'FLOPs, ratio':>14}")
    for size in sizes:
        for way in WAYS:
            real = measured(size, way)
            plan = dry_run(config_of(size, way), 2, SEQUENCES, fused=False)
            real_total = real["memory"]["total"]
            print(
                f"{size + ', ' + way:<32}{plan.memory['total'] / 1e6:>9,.1f} "
                f"MB{real_total / 1e6:>9,.1f} "
                f"MB{plan.memory['total'] / real_total:>8.3f}{plan.flops / real['flops']:>14.4f}"
            )


if __name__ == "__main__":
    main()
