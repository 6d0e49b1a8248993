"""How long the plan of a very large data set takes: opening it, any step, a sample. No payload is
needed.

    python tools/bench_plan.py --samples 100000000

writes a synthetic index (pictures of random sizes with captions of random lengths; about 80 bytes a
sample) into --folder, counts its groups once, as a first start does, and then measures in fresh
processes what every later start pays. Memory is the largest resident set; pages of the mapped index
that steps have touched count in it, and the system takes those back whenever it needs memory.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmscale import prf
from mmscale.config import Config, MediaConfig, ModelConfig, SetConfig, TaskConfig
from mmscale.data.index.index_files import FACTS, VERSION, Shard, identity
from mmscale.data.tokenizer import Tokenizer

SHARD_SAMPLES = 10_000
CHUNK = 5_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--samples", type=int, default=100_000_000, help="default: 100 million (8 GB of disk)"
    )
    parser.add_argument(
        "--folder", type=Path, default=None, help="default: a temporary one, removed again"
    )
    parser.add_argument("--phase", choices=("count", "open"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phase:
        print(json.dumps(measure(arguments.folder, first=arguments.phase == "count")))
        return
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="mmscale-bench-"))
    try:
        if not (folder / "index" / "manifest.json").exists():
            write_index(folder, arguments.samples)
        first = run_phase(folder, "count")
        runs = [run_phase(folder, "open") for _ in range(3)]
        report(arguments.samples, first, runs)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


def run_phase(folder: Path, phase: str) -> dict[str, float]:
    """One fresh process, as a start of a run is."""
    command = [sys.executable, __file__, "--folder", str(folder), "--phase", phase]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def config_of(folder: Path) -> Config:
    """Image and caption pairs, packed into 4,096 tokens, 64 sequences a step."""
    config = Config(model=ModelConfig(), media=MediaConfig(max_image_tokens=256))
    tasks = [TaskConfig(input=["image"], target="text")]
    config.data.sets = {"synthetic": SetConfig(shards=[str(folder)], tasks=tasks)}
    config.data.seq_len, config.data.sequences = 4096, 64
    return config


def bench_tokenizer() -> Tokenizer:
    """Any tokenizer: the lengths of the captions are synthetic."""
    return Tokenizer.train(["a caption of a picture"], 300)


def count_tokens(totals: Mapping[str, float]) -> float:
    """A sequence's cost without a model, whose stems would import torch into the memory measured
    here.
    """
    return totals["tokens"]


def measure(folder: Path, first: bool) -> dict[str, float]:
    """Open the plan, then time steps drawn from the whole of three epochs, each far from the
    last.
    """
    from mmscale.data.planning.step_plan import Plan

    config, tokenizer = config_of(folder), bench_tokenizer()
    began = time.perf_counter()
    plan = Plan(config, tokenizer, progress=first, cost=count_tokens)
    opened = time.perf_counter() - began
    open_mb = most_resident_mb()
    if first:
        return {"open_s": opened}
    epoch = plan.sets[0].order.sequences_per_epoch // plan.sequences
    draws = prf.Draws(prf.derive_key("bench"))
    cold = []
    for step in [0, epoch - 1, *(draws.integer(0, 3 * epoch) for _ in range(30))]:
        began = time.perf_counter()
        plan.step(step)
        cold.append(time.perf_counter() - began)
    samples, start = 0, draws.integer(0, epoch)
    began = time.perf_counter()
    for step in range(start, start + 200):
        samples += sum(len(sequence.samples) for sequence in plan.step(step).sequences)
        plan.share(step, 0, 8)
    each = (time.perf_counter() - began) / samples
    filled = plan.sets[0].counts
    return {
        "open_s": opened,
        "open_mb": open_mb,
        "cold_max_ms": max(cold) * 1e3,
        "cold_median_ms": float(np.median(cold)) * 1e3,
        "last_ms": cold[1] * 1e3,
        "sample_us": each * 1e6,
        "rss_mb": most_resident_mb(),
        "fill": filled.tokens / (plan.sets[0].order.sequences_per_epoch * plan.seq_len),
    }


def most_resident_mb() -> float:
    """The largest resident set so far. Not ``ru_maxrss``, which a process inherits from the one
    that started it.
    """
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    return int(peak[1]) / 1024


def report(samples: int, first: dict[str, float], runs: list[dict[str, float]]) -> None:
    """The worst of the later starts, beside the first one."""
    worst = {name: max(run[name] for run in runs) for name in runs[0]}
    print(f"{samples:,} samples, worst of {len(runs)} fresh processes")
    print(f"  first start, which counts the groups once   {first['open_s']:.1f} s")
    print(f"  every later start: open                     {worst['open_s']:.3f} s")
    print(f"  resident memory of the whole process        {worst['open_mb']:.0f} MB")
    print(f"  the same after 232 steps (mapped index)     {worst['rss_mb']:.0f} MB")
    print(f"  a step, from anywhere, median               {worst['cold_median_ms']:.1f} ms")
    print(f"  a step, from anywhere, worst                {worst['cold_max_ms']:.1f} ms")
    print(f"  the last step of the epoch                  {worst['last_ms']:.1f} ms")
    print(f"  steps in their order, a sample              {worst['sample_us']:.1f} us")
    print(f"  positions that hold tokens                  {worst['fill']:.2%}")


def write_index(folder: Path, samples: int) -> None:
    """A synthetic index and the token counts a first start would have left."""
    from mmscale.data.index.manifest import Manifest
    from mmscale.data.planning.token_counts import counts_file_name

    index = folder / "index"
    index.mkdir(parents=True)
    names = [f"{number:06d}.tar" for number in range(-(-samples // SHARD_SAMPLES))]
    shards = [
        Shard(
            name,
            1 << 31,
            f"{prf.derive_key(name):016x}" * 4,
            min(SHARD_SAMPLES, samples - n * SHARD_SAMPLES),
        )
        for n, name in enumerate(names)
    ]
    files = {
        "keys": np.lib.format.open_memmap(index / "keys.npy", "w+", np.uint8, (9 * samples,)),
        "key_ends": np.lib.format.open_memmap(index / "key_ends.npy", "w+", np.uint64, (samples,)),
        "jpg": np.lib.format.open_memmap(index / "field.jpg.npy", "w+", FACTS, (samples,)),
        "txt": np.lib.format.open_memmap(index / "field.txt.npy", "w+", FACTS, (samples,)),
        "tokens": np.lib.format.open_memmap(folder / "tokens.npy", "w+", np.uint32, (samples,)),
    }
    for start in range(0, samples, CHUNK):
        rows = slice(start, min(start + CHUNK, samples))
        _write_rows(files, rows)
        print(f"\r{rows.stop:,} of {samples:,} samples written", end="", file=sys.stderr)
    print(file=sys.stderr)
    tree = {
        "version": VERSION,
        "digest": identity(shards),
        "samples": samples,
        "shards": [vars(shard) for shard in shards],
        "fields": ["jpg", "txt"],
        "problems": 0,
        "base": "https://shards.invalid/synthetic",
    }
    (index / "manifest.json").write_text(json.dumps(tree))
    name = counts_file_name([Manifest.load(folder)], "text", bench_tokenizer())
    (folder / "tokens.npy").rename(index / name)


def _write_rows(files: Mapping[str, np.ndarray], rows: slice) -> None:
    count = rows.stop - rows.start
    numbers = np.arange(rows.start, rows.stop)

    def drawn(what: str, low: int, high: int) -> np.ndarray:
        key = prf.derive_key("bench", what)
        return (low + prf.uniform(key, count, rows.start) * (high - low)).astype(np.uint32)

    digits = (numbers[:, None] // 10 ** np.arange(8, -1, -1)) % 10 + ord("0")
    files["keys"][9 * rows.start : 9 * rows.stop] = digits.astype(np.uint8).reshape(-1)
    files["key_ends"][rows] = 9 * (numbers + 1)
    inside = numbers % SHARD_SAMPLES
    for field, offset, size in (("jpg", 512, 200_000), ("txt", 201_216, 60)):
        files[field]["offset"][rows] = inside * 202_240 + offset
        files[field]["size"][rows] = size
    files["jpg"]["a"][rows], files["jpg"]["b"][rows] = (
        drawn("width", 200, 1200),
        drawn("height", 200, 1200),
    )
    files["txt"]["a"][rows] = 60
    files["tokens"][rows] = drawn("tokens", 5, 40)


if __name__ == "__main__":
    main()
