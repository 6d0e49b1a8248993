"""What a checkpoint costs: training's wait beside a plain copy in memory, the whole of it beside
`dd`.

    python tools/bench_checkpoint.py --folder /data/scratch

Two processes hold `base` with its AdamW moments as FSDP shards them (1.5 GB). In every round, in
turn: *stall*, how long `CheckpointStore.save` keeps training waiting; *save*, from its call until
the checkpoint exists, flushed and hashed; *copy*, every tensor copied in memory, into tensors that
were used before; *dd*, each process's file written again by ``dd bs=16M conv=fsync``, both at once,
from the page cache. Removing what was written is counted on neither side. Without a rest, dd's page
cache is memory that was free a moment ago, which on a virtual machine is faster than memory that
its host has to find first; a run saves once in many minutes. A time is the slower process's. The
first round is left out: in it every memory is new.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from bench_plan_memory import config_of
from bench_ranks import command_of_ranks

_SIDES = ("stall", "save", "copy", "dd")


def rank(folder: Path, rounds: int, rest: float) -> None:
    """One process: measures, and the first one prints a table."""
    from mmscale.checkpoint.run_state import RetentionPolicy, RunState, stored_files
    from mmscale.checkpoint.store import CheckpointStore
    from mmscale.parallel.ranks import join_ranks, leave_ranks
    from mmscale.parallel.strategy import build_strategy
    from mmscale.train.gc_freeze import gc_frozen

    config = config_of("base", "bf16, full checkpointing")
    config.parallel.threads = 1
    ranks = join_ranks(config.parallel)
    strategy = build_strategy(config, ranks)
    strategy.restore(lambda tensors: None, 0)  # makes the moments
    tensors = strategy.state_tensors()
    local = [
        tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors.values()
    ]
    spare = [tensor.clone() for tensor in local]
    store = CheckpointStore(folder / "checkpoints", RetentionPolicy(rounds + 1))
    seconds: dict[str, list[float]] = {side: [] for side in _SIDES}

    def copy() -> None:
        for new, old in zip(spare, local, strict=True):
            new.copy_(old)

    def timed(act: Callable[..., object], *arguments: object) -> float:
        dist.barrier()
        began = time.perf_counter()
        act(*arguments)
        return time.perf_counter() - began

    def round_(number: int) -> tuple[list[float], int]:
        """(Seconds of every side, the slower process's; bytes of a checkpoint.)"""
        seconds = {"stall": timed(store.save, tensors, RunState(step=number, fingerprint=""))}
        seconds["save"] = seconds["stall"] + timed(store.wait)
        assert not store.failure, store.failure
        seconds["copy"] = timed(copy)
        saved = folder / "checkpoints" / f"step-{number:08d}"
        files = sorted(stored_files(saved))
        assert len(files) == ranks.world
        # The same bytes in every round, and in the page cache, past which they were saved.
        source = folder / f"source-{ranks.rank}"
        if not source.exists():
            shutil.copyfile(saved / files[ranks.rank], source)
        command = ["dd", f"if={source}", f"of={folder / f'dd-{ranks.rank}'}", "bs=16M"]
        seconds["dd"] = timed(_run, [*command, "conv=fsync"])
        (folder / f"dd-{ranks.rank}").unlink()
        size = sum(fact["bytes"] for fact in stored_files(saved).values())
        slower = torch.tensor([seconds[side] for side in _SIDES])
        dist.all_reduce(slower, dist.ReduceOp.MAX)
        if ranks.is_first:
            shutil.rmtree(saved)
        os.sync()  # or the next save pays for the removal
        time.sleep(rest)
        return slower.tolist(), size

    with gc_frozen():  # as training does
        round_(0)
        for number in range(1, rounds + 1):
            times, size = round_(number)
            for side, value in zip(_SIDES, times, strict=True):
                seconds[side].append(value)
    leave_ranks()
    if ranks.is_first:
        _report(seconds, size)


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _report(seconds: dict[str, list[float]], size: int) -> None:
    print(
        f"{size / 1e9:.2f} GB in two files, {len(seconds['dd'])} rounds; seconds: median (least to "
        "most)\n"
    )
    for side in _SIDES:
        print(
            f"{side:5}  {statistics.median(seconds[side]):.3f} ({min(seconds[side]):.3f} to "
            f"{max(seconds[side]):.3f})"
        )
    print()
    for what, beside, goal in (("stall", "copy", "< 1.5"), ("save", "dd", "<= 1.3")):
        ratios = [a / b for a, b in zip(seconds[what], seconds[beside], strict=True)]
        print(
            f"{what} / {beside}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
            f"{max(ratios):.2f}); goal {goal}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="scratch folder on the disk to be measured"
    )
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--rest",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="between two rounds; default: %(default)s",
    )
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work = arguments.folder / "bench-checkpoint"
    if arguments.rank:
        rank(work, arguments.rounds, arguments.rest)
        return
    work.mkdir(parents=True)
    try:
        launch = command_of_ranks(__file__, 2)
        options = ["--rank", "--folder", str(arguments.folder), "--rounds", str(arguments.rounds)]
        options += ["--rest", str(arguments.rest)]
        subprocess.run([*launch, *options], check=True)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
