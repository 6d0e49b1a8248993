"""How much faster an index is made by two processes than by one.

    python tools/bench_index.py

Shards of pictures and clips, all of which are probed, are indexed by one process and by two in turn
(``mmscale data index --workers``), and verified in the same way. Files are in memory before the
first round. A ratio is that of the medians, with the least and the most of the rounds; starting the
processes counts.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
from PIL import Image

from mmscale.config import MediaConfig
from mmscale.data.index.build_index import IndexPass, build_index
from mmscale.data.index.verify_shards import verify_shards
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.data.worker_pool import WorkerPool

WORKERS = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=40_000, help="default: 40,000 (2 GB)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--json", action="store_true", help="print one machine-readable result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mmscale-bench-") as folder:
        size = write_set(Path(folder), arguments.samples)
        seconds = measure(Path(folder), arguments.rounds)
    result = {"samples": arguments.samples, "bytes": size, "seconds": seconds}
    print(json.dumps(result) if arguments.json else table(size, seconds))


def write_set(folder: Path, samples: int) -> int:
    """Half of them pictures of 320 x 240 (40 kB), half clips of 2 s (64 kB of FLAC); in bytes."""
    random = np.random.default_rng(0)
    media = [_picture(random) if number % 2 else _clip(random) for number in range(100)]
    with ShardWriter(folder, samples_per_shard=max(1, samples // 40)) as writer:
        for number in range(samples):
            ending = "jpg" if number % 2 else "flac"
            writer.write(f"{number:08d}", {ending: media[number % 100], "txt": b"some text"})
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


def measure(folder: Path, rounds: int) -> dict[str, dict[int, list[float]]]:
    """Seconds of every round, by command and processes."""

    def index(pool: WorkerPool | None) -> None:
        build_index(folder, MediaConfig(), progress=False, how=IndexPass(pool=pool, every=True))

    def verify(pool: WorkerPool | None) -> None:
        assert verify_shards(folder, pool=pool) == []

    commands: dict[str, Callable[[WorkerPool | None], None]] = {"index": index, "verify": verify}
    index(None)
    seconds: dict[str, dict[int, list[float]]] = {
        name: {workers: [] for workers in WORKERS} for name in commands
    }
    for _ in range(rounds):
        for name, command in commands.items():
            for workers in WORKERS:
                began = time.perf_counter()
                with WorkerPool(workers) as pool:
                    command(pool if workers > 1 else None)
                seconds[name][workers].append(time.perf_counter() - began)
    return seconds


def table(size: int, seconds: dict[str, dict[int, list[float]]]) -> str:
    """For people."""
    lines = [
        f"{size / 1e9:.2f} GB",
        "| command | 1 process, MB/s | 2 processes, MB/s | ratio (rounds) |",
        "|---|---|---|---|",
    ]
    for name, taken in seconds.items():
        one, two = (median(taken[workers]) for workers in WORKERS)
        ratios = [a / b for a, b in zip(taken[1], taken[2], strict=True)]
        lines.append(
            f"| {name} | {size / one / 1e6:.0f} | {size / two / 1e6:.0f} "
            f"| {one / two:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    return "\n".join(lines)


def _picture(random: np.random.Generator) -> bytes:
    pixels = random.integers(0, 256, (240, 320, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def _clip(random: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, random.normal(0, 0.1, 32_000), 16_000, format="FLAC")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
