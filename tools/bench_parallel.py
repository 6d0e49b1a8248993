"""What splitting the work and the training loop cost; ratios within one run.

    python tools/bench_parallel.py scaling   weak scaling from one process to two, FSDP and DDP
    python tools/bench_parallel.py loop      the loop's own share of a step

Both train `base` in bf16 on the CPU, one thread a process. `scaling`: every process reads one
sequence of 512 tokens a step, so two do twice the work of one; the efficiency is one's time over
two's. `loop`: all of a step but forward, backward, update, and waiting for collectives and for
data, on pictures and clips of the embedded data set.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_plan_memory import config_of
from bench_ranks import command_of_ranks

STEPS, SKIPPED = 6, 2


def step_seconds(kind: str, ranks: int, tokens: int) -> float:
    """Median of one launch."""
    command = command_of_ranks(__file__, ranks)
    order = ["rank", kind, "--tokens", str(tokens)]
    done = subprocess.run([*command, *order], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return float(done.stdout.splitlines()[-1])


def rank(kind: str, tokens: int) -> None:
    """One process of a launch: ``fsdp`` is ours, ``ddp`` is `DistributedDataParallel` around the
    same model.
    """
    from mmscale.capacity.dry_batch import dry_batch
    from mmscale.model.fusion import FusionTransformer
    from mmscale.parallel.ranks import join_ranks, leave_ranks
    from mmscale.parallel.strategy import build_strategy

    config = config_of("base", "bf16, full checkpointing")
    config.parallel.checkpointing, config.parallel.threads, config.data.seq_len = "none", 1, tokens
    ranks = join_ranks(config.parallel)
    batch = dry_batch(config, 1)
    if kind == "fsdp":
        strategy = build_strategy(config, ranks)
        strategy.model.train()

        def step() -> None:
            strategy.forward_backward(batch, last=True)
            strategy.update(0, 1e-4, lambda norm: torch.zeros(()))
    else:
        model = torch.nn.parallel.DistributedDataParallel(
            FusionTransformer(config.model, config.media)
        )
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                losses = model(batch)
            torch.stack(list(losses.values())).sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    seconds = []
    for _ in range(STEPS):
        torch.distributed.barrier()
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    leave_ranks()
    if ranks.is_first:
        print(statistics.median(seconds[SKIPPED:]))


def scaling(rounds: int, tokens: int) -> None:
    """Launches in turn."""
    kinds: list[tuple[str, int]] = [("fsdp", 1), ("fsdp", 2), ("ddp", 1), ("ddp", 2)]
    seconds: dict[tuple[str, int], list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            seconds[kind].append(step_seconds(*kind, tokens))
    print(f"{tokens} tokens a process and step")
    for name in ("fsdp", "ddp"):
        single, double = seconds[name, 1], seconds[name, 2]
        ratios = [a / b for a, b in zip(single, double, strict=True)]
        print(
            f"{name}: {statistics.median(single):.2f} s with one process, "
            f"{statistics.median(double):.2f} s with two; efficiency "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )


def loop() -> None:
    """Times the parts of real training steps from outside."""
    from unittest import mock

    from mmscale.config_file import load_config
    from mmscale.demo.digits import build_digits
    from mmscale.parallel.strategies.single import SingleStrategy
    from mmscale.train import loop as train_loop

    spent: list[float] = [0.0]

    def timed(function: Any) -> Any:
        def call(*arguments: Any, **settings: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **settings)
            finally:
                spent[0] += time.perf_counter() - began

        return call

    with tempfile.TemporaryDirectory() as folder:
        build_digits(Path(folder) / "digits", progress=False, samples=600)
        overrides = [
            f"run.dir={folder}/run",
            f"data.sets.digits.shards={folder}/digits/train",
            "data.prepare=",
            "data.workers=1",
            "data.seq_len=1024",
            "data.sequences=1",
            "train.steps=10",
            "train.precision=bf16",
            "parallel.strategy=single",
            "run.progress=false",
            "model={width: 768, layers: 14, heads: 12, kv_heads: 4, head_dim: 64, hidden: 2304}",
            "parallel.threads=1",
            "train.checkpoint_every=1000",
        ]
        config = load_config("configs/train/digits.yaml", overrides)
        with (
            mock.patch.object(
                SingleStrategy, "forward_backward", timed(SingleStrategy.forward_backward)
            ),
            mock.patch.object(SingleStrategy, "update", timed(SingleStrategy.update)),
        ):
            rows: list[dict[str, float]] = []
            write = train_loop.Metrics._write

            def note(metrics: Any, row: dict[str, float]) -> None:
                rows.append(
                    {"step_s": row["step_s"], "wait": row["data_wait_s"], "spent": spent[0]}
                )
                write(metrics, row)

            with mock.patch.object(train_loop.Metrics, "_write", note):
                train_loop.train(config)
    steady = rows[2:-1]
    own = []
    for first, second, third in zip(steady, steady[1:], steady[2:], strict=False):
        # A row is written when the next step has been launched, so what was spent between two is
        # the third's.
        own.append(1.0 - (second["spent"] - first["spent"] + third["wait"]) / third["step_s"])
    print(
        "the loop's own share of a step of "
        f"{statistics.median(row['step_s'] for row in steady):.2f} s: "
        f"{statistics.median(own):.2%} ({min(own):.2%} to {max(own):.2%})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("scaling", "loop", "rank"))
    parser.add_argument("kind", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument(
        "--tokens",
        type=int,
        default=2048,
        metavar="N",
        help="scaling: of a process and step (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.what == "rank":
        rank(arguments.kind, arguments.tokens)
    elif arguments.what == "scaling":
        scaling(arguments.rounds, arguments.tokens)
    else:
        loop()


if __name__ == "__main__":
    main()
