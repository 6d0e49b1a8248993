"""What a local order costs: held-out scores beside a full permutation, on a set sorted by class.

    python tools/bench_order.py

The digits of scikit-learn, sorted by class and cut into shards of 40, which is the worst a local
order can meet. Each seed trains the same model twice: in mmscale's own order, with small blocks so
that a set of this size has many, and with every sample drawn from everywhere. Printed: distinct
shards and classes in a step of either order, and the held-out accuracies with the 95 % interval of
their difference (paired by seed, Student's t).

``--large`` counts, and trains nothing: an index of two million samples without payload, sorted by
class, 1,000 classes in 200 shards, in mmscale's own order with its defaults.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench_plan
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from mmscale.config import MediaConfig
from mmscale.config_file import load_config
from mmscale.data.index.build_index import build_index
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.data.planning.step_plan import Plan
from mmscale.train.prepare import prepare_tokenizer

TRAIN, SHARD = 1197, 40  # samples; the other 600 are held out
STEPS = 300
LARGE, LARGE_CLASS = 2_000_000, 2000  # samples; of a class
_T_OF_4 = 2.776  # Student's t, 97.5 %, five seeds
ORDERS = {
    "local": {"block": 4},
    "full": {"block": 1, "group_blocks": TRAIN, "lanes": 1, "window_groups": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--large", action="store_true", help="count the mixing of two million samples, and stop"
    )
    parser.add_argument("--json", action="store_true", help="print one machine-readable result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mmscale-bench-") as folder:
        result = large_mixing(Path(folder)) if arguments.large else bench(Path(folder))
    if arguments.json or arguments.large:
        print(json.dumps(result))
    else:
        print(table(result))


def bench(folder: Path) -> dict[str, Any]:
    """By order: distinct shards and classes a step, and the accuracy of every seed."""
    labels = write_set(folder)
    config = folder / "config.yaml"
    config.write_text(json.dumps(config_of(folder)), "utf-8")
    result: dict[str, Any] = {
        name: mixing(config, settings, labels) for name, settings in ORDERS.items()
    }
    for name in ORDERS:
        result[name]["accuracy"] = []
    for seed in range(5):
        for name, settings in ORDERS.items():
            run = folder / f"{name}-{seed}"
            more = [f"data.{key}={value}" for key, value in settings.items()]
            _mmscale("train", str(config), f"run.dir={run}", f"seed={seed}", *more)
            scores = json.loads(_mmscale("eval", str(run), "--json"))
            result[name]["accuracy"].append(scores["digits"]["accuracy"])
    return result


def write_set(folder: Path) -> list[int]:
    """Shards of training samples, sorted by class, and of held-out ones; the classes of the first,
    in their order.
    """
    digits = load_digits()
    order = np.argsort(digits.target[:TRAIN], kind="stable").tolist()
    for name, numbers in (("train", order), ("test", range(TRAIN, len(digits.target)))):
        with ShardWriter(folder / name, samples_per_shard=SHARD) as writer:
            for place, number in enumerate(numbers):
                buffer = io.BytesIO()
                pixels = (digits.images[number] * (255 / 16)).astype(np.uint8)
                Image.fromarray(pixels).resize((16, 16)).save(buffer, "PNG")
                label = str(digits.target[number])
                writer.write(f"{place:05d}", {"png": buffer.getvalue(), "cls": label.encode()})
        build_index(folder / name, MediaConfig(), progress=False)
    return [int(digits.target[number]) for number in order]


def config_of(folder: Path) -> dict[str, Any]:
    """A small model that reads the set, about fifty samples a step."""
    task = {"input": ["image"], "target": "cls"}
    return {
        "model": {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "hidden": 128},
        "media": {"image_height": 16, "image_width": 16, "image_patch": 4},
        "data": {
            "seq_len": 128, "sequences": 8, "workers": 0, "tokenizer": {"vocab_size": 300},
            "sets": {"digits": {"shards": [str(folder / "train")], "tasks": [task]}},
        },
        "train": {
            "steps": STEPS, "precision": "fp32", "checkpoint_every": STEPS,
            "optimizer": {"lr": 3e-3, "warmup_steps": 20},
        },
        "parallel": {"threads": 1},
        "eval": {"digits": {"task": "classify", "shards": [str(folder / "test")], **task}},
    }  # fmt: skip


def mixing(config: Path, settings: dict[str, int], labels: list[int]) -> dict[str, Any]:
    """Means over the steps of three epochs."""
    opened = load_config(str(config), [f"data.{key}={value}" for key, value in settings.items()])
    plan = Plan(opened, prepare_tokenizer(opened), cost=lambda totals: totals["tokens"])
    shards, classes, samples = [], [], []
    for step in range(3 * plan.sets[0].order.sequences_per_epoch // plan.sequences):
        drawn = np.concatenate([one.samples for one in plan.step(step).sequences])
        samples.append(len(drawn))
        shards.append(len(np.unique(drawn // SHARD)))
        classes.append(len({labels[sample] for sample in drawn.tolist()}))
    return {
        "samples": float(np.mean(samples)),
        "shards": float(np.mean(shards)),
        "classes": float(np.mean(classes)),
        "lanes": plan.sets[0].lanes,
        "groups": plan.sets[0].layout.groups,
    }


def large_mixing(folder: Path) -> dict[str, Any]:
    """Means over 200 steps of the first 600, beside what a full permutation would give."""
    bench_plan.write_index(folder, LARGE)
    config = bench_plan.config_of(folder)
    config.data.sequences = 192
    plan = Plan(config, bench_plan.bench_tokenizer(), cost=bench_plan.count_tokens)
    drawn = [
        np.concatenate([one.samples for one in plan.step(step).sequences])
        for step in range(0, 600, 3)
    ]
    samples = float(np.mean([len(one) for one in drawn]))
    result: dict[str, Any] = {"samples": samples, "lanes": plan.sets[0].lanes}
    for name, size in (("shards", bench_plan.SHARD_SAMPLES), ("classes", LARGE_CLASS)):
        there = LARGE // size
        result[name] = float(np.mean([len(np.unique(one // size)) for one in drawn]))
        result[f"{name} of a full permutation"] = there * (1 - (1 - 1 / there) ** samples)
    return result


def table(result: dict[str, Any]) -> str:
    """For people."""
    lines = [
        "| order | groups | lanes | samples a step | shards a step | classes a step | accuracy |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for name, row in result.items():
        scores = np.array(row["accuracy"])
        lines.append(
            f"| {name} | {row['groups']} | {row['lanes']} | {row['samples']:.1f} "
            f"| {row['shards']:.2f} | {row['classes']:.2f} "
            f"| {scores.mean():.2%} ± {scores.std(ddof=1):.2%} |"
        )
    difference = np.array(result["local"]["accuracy"]) - np.array(result["full"]["accuracy"])
    half = _T_OF_4 * difference.std(ddof=1) / math.sqrt(len(difference))
    low, high = difference.mean() - half, difference.mean() + half
    verdict = "no difference at 95 %" if low <= 0 <= high else "a difference at 95 %"
    return "\n".join([*lines, f"local - full: {low:+.2%} to {high:+.2%}: {verdict}"])


def _mmscale(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mmscale", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"mmscale {arguments[0]}: {done.stderr.strip()[-300:]}")
    return done.stdout


if __name__ == "__main__":
    main()
