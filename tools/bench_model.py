"""How fast the model trains, and how much memory it takes; ratios within one run.

    python tools/bench_model.py step --open-clip-python OTHER_ENVIRONMENT/bin/python
    python tools/bench_model.py memory
    python tools/bench_model.py gpu --size 1b --sequences 8 --profile
    python tools/bench_model.py gpu --size 10b parallel.checkpointing=full train.optimizer.name=muon

step     `base` in bf16 on packed pictures, captions and speech: forward, backward, clipping and
         update, beside plain bf16 matrix products in the same process and beside open_clip's
         ViT-B/32 training step in turn
memory   the peak of `small` for sequences of 1,024 to 8,192 tokens, each in a fresh process, above
         that of the model at rest
gpu      the same step on one GPU, as a share of its rated bf16 speed (MFU), and its peak memory;
         further arguments are keys of the config

Model FLOPs: three times the forward pass over real tokens; padding and recomputation are not
counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from bench_data_shards import write_pictures

from mmscale.config import MediaConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.gpu import known_gpu

HERE = Path(__file__).resolve().parent


class Side:
    """A process that makes one step a line."""

    def __init__(self, command: list[str], gpu: bool = False) -> None:
        hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **hidden},
        )
        self.facts = self._answer()

    def step(self, how: str = "step") -> dict[str, Any]:
        """Make one; ``profile``: and report which kernels took how long."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{how}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a side ended early; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def ours(
    folder: Path,
    size: str,
    seq_len: int,
    sequences: int,
    *keys: str,
    gpu: bool = False,
    compiled: bool = True,
) -> Side:
    """mmscale's side, with ``keys`` of the config set."""
    words = [
        str(folder),
        size,
        str(seq_len),
        str(sequences),
        f"parallel.compile={str(compiled).lower()}",
        *keys,
    ]
    return Side([sys.executable, str(HERE / "bench_model_side.py"), *words], gpu)


def step(folder: Path, arguments: argparse.Namespace) -> None:
    """Our step, matrix products and open_clip's step, in turn."""
    sides = {
        "mmscale": ours(folder, "base", 4096, 1),
        "mmscale, eager": ours(folder, "base", 4096, 1, compiled=False),
    }
    if arguments.open_clip_python:
        script = str(HERE / "bench_model_open_clip.py")
        sides["open_clip ViT-B/32"] = Side([arguments.open_clip_python, script, "64"])
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for round_ in range(arguments.rounds + 2):
        for name, side in sides.items():
            row = side.step()
            if round_ >= 2:  # the first two compile and warm up
                rows[name].append(row)
    print(f"base, bf16, median of {arguments.rounds} rounds (least to most)")
    rates = {
        name: [row["flops"] / row["seconds"] / 1e9 for row in side_rows]
        for name, side_rows in rows.items()
    }
    products = [row["matmul"] / 1e9 for row in rows["mmscale"]]
    for name, rate in rates.items():
        print(f"  {name:<24}{spread(rate, 0)} GFLOP/s")
    print(f"  {'bf16 matrix products':<24}{spread(products, 0)} GFLOP/s")
    share = [rate / product for rate, product in zip(rates["mmscale"], products, strict=True)]
    print(f"  mmscale over matrix products    {spread(share, 2)}")
    if "open_clip ViT-B/32" in rates:
        over = [a / b for a, b in zip(rates["mmscale"], rates["open_clip ViT-B/32"], strict=True)]
        print(f"  mmscale over open_clip          {spread(over, 2)}")
    padding = median(row["padding"] for row in rows["mmscale"])
    print(f"  positions that are padding      {padding:.1%}")
    print("versions:", {**sides["mmscale"].facts, **(list(sides.values())[-1].facts)})
    for side in sides.values():
        side.close()


def memory(folder: Path, arguments: argparse.Namespace) -> None:
    """Peak memory by the number of tokens."""
    print("small, bf16, one sequence a step: peak above the model at rest")
    last: tuple[int, float] | None = None
    for seq_len in (1024, 2048, 4096, 8192):
        side = ours(folder, "small", seq_len, 1, compiled=False)
        row = [side.step() for _ in range(3)][-1]
        side.close()
        above = row["peak_mb"] - side.facts["base_mb"]
        growth = (
            f"   x {above / last[1]:.2f} for x {row['tokens'] / last[0]:.2f} tokens" if last else ""
        )
        print(f"  {seq_len:>6} positions, {row['tokens']:>6} tokens   {above:7.0f} MB{growth}")
        last = row["tokens"], above


def gpu(folder: Path, arguments: argparse.Namespace) -> None:
    """Steps on one GPU."""
    side = ours(
        folder, arguments.size, arguments.seq_len, arguments.sequences, *arguments.keys, gpu=True
    )
    name = side.facts["device"]
    known = known_gpu(name)
    for _ in range(arguments.warm_up):
        side.step()
    rows = [side.step() for _ in range(arguments.rounds)]
    rate = median(row["flops"] / row["seconds"] for row in rows)
    tokens = median(row["tokens"] / row["seconds"] for row in rows)
    mfu = (
        f"{rate / known.bf16:.1%} of the rated {known.bf16 / 1e12:.0f}"
        if known
        else "rated speed not known"
    )
    way = " ".join([f"{arguments.sequences} x {arguments.seq_len}", *arguments.keys])
    seconds, padding = (median(row[kind] for row in rows) for kind in ("seconds", "padding"))
    print(
        f"{arguments.size}, {way}, on {name}: {rate / 1e12:.0f} TFLOP/s ({mfu}), {tokens:,.0f} "
        f"tokens/s, {seconds:.3f} s a step, {padding:.1%} padding, peak "
        f"{rows[-1]['peak_mb'] / 1024:.1f} GiB"
    )
    print(
        f"  products alone: {median(row['matmul'] for row in rows) / 1e12:.0f} TFLOP/s; "
        f"{side.facts}"
    )
    if arguments.profile:
        for kernel, milliseconds, calls in side.step("profile")["kernels"]:
            print(f"  {milliseconds:8.2f} ms {calls:5d} x  {kernel}")
    side.close()


def write_shards(source: Path, folder: Path) -> None:
    """Photographs with captions, and utterances of about six seconds with their words; each many
    times over.
    """
    write_pictures(source / "captions", folder, 1020)
    clips = sorted((source / "yesno").rglob("*.wav"))
    words = {"0": "no", "1": "yes"}
    with ShardWriter(folder / "speech", samples_per_shard=500) as writer:
        for number in range(960):
            clip = clips[number % len(clips)]
            text = " ".join(words[digit] for digit in clip.stem.split("_"))
            writer.write(
                f"{clip.stem}-{number:04d}", {"wav": clip.read_bytes(), "txt": text.encode()}
            )
    build_index(folder / "speech", MediaConfig(), progress=False)


def spread(values: list[float], digits: int) -> str:
    """Median, least and most."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("step", "memory", "gpu"))
    parser.add_argument(
        "--data", type=Path, help="published data sets (default: $MMSCALE_DATA, ../shared/data)"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--open-clip-python", metavar="F", help="interpreter of an environment with open_clip_torch"
    )
    parser.add_argument(
        "--size", default="1b", help="gpu: a file of configs/model (default: %(default)s)"
    )
    parser.add_argument("--seq-len", type=int, default=4096, help="gpu: default: %(default)s")
    parser.add_argument(
        "--sequences", type=int, default=4, help="gpu: of one micro-batch (default: %(default)s)"
    )
    parser.add_argument(
        "--warm-up",
        type=int,
        default=5,
        metavar="N",
        help="gpu: steps before, the first compiles (default: 5)",
    )
    parser.add_argument(
        "--profile", action="store_true", help="gpu: print the kernels of a step by their time"
    )
    parser.add_argument(
        "keys", nargs="*", metavar="KEY=VALUE", help="gpu: such as parallel.checkpointing=full"
    )
    arguments = parser.parse_intermixed_args()
    source = arguments.data or Path(
        os.environ.get("MMSCALE_DATA", HERE.parent.parent / "shared" / "data")
    )
    with tempfile.TemporaryDirectory(prefix="mmscale-bench-") as folder:
        write_shards(source, Path(folder))
        {"step": step, "memory": memory, "gpu": gpu}[arguments.what](Path(folder), arguments)


if __name__ == "__main__":
    main()
