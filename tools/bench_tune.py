"""What early stopping gains, and what tuning costs.

    python tools/prepare_fsdd.py --source FOLDER_OF_FSDD
    python tools/bench_tune.py gain --plot docs/images/tune.png
    python tools/bench_tune.py cost

gain: for each seed a random search whose trials all run to the end, and asha over as many steps in
all; the best held-out score each had found when so many steps were spent. cost: wall time of a
search without early stopping, one trial at a time, against `mmscale train` and `mmscale eval` of
the same configs in a row, in turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from mmscale.config_file import dump_config, load_config
from mmscale.tune.run import tune

CONFIG = "configs/tune/fsdd.yaml"


@dataclass(frozen=True)
class CurvePoint:
    """The best score that was known when ``steps`` of all trials together were spent."""

    steps: int
    score: float


def search(folder: Path, arguments: argparse.Namespace, *overrides: str) -> list[CurvePoint]:
    """Run one search; its best score over the steps spent."""
    config = load_config(
        CONFIG,
        [
            f"run.dir={folder}",
            f"train.steps={arguments.steps}",
            f"train.checkpoint_every={arguments.steps}",
            f"train.optimizer.warmup_steps={arguments.steps // 10}",
            f"data.sequences={arguments.sequences}",
            "data.workers=0",
            "tune.search=random",
            *overrides,
        ],
    )
    tune(config)
    spent, best, curve = 0, 0.0, []
    at: dict[int, int] = {}
    for line in (folder / "tune.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row.get("event") == "score" and row["score"] is not None:
            spent += row["step"] - at.get(row["number"], 0)
            at[row["number"]] = row["step"]
            if row["step"] == arguments.steps:  # a score on the way is no result
                best = max(best, row["score"])
                curve.append(CurvePoint(spent, best))
    return curve


def best_within(curve: list[CurvePoint], steps: int) -> float:
    """The best score of a search when ``steps`` were spent; 0 before the first."""
    return max((point.score for point in curve if point.steps <= steps), default=0.0)


def gain(arguments: argparse.Namespace) -> None:
    """Print the table of both searches, and draw it."""
    budget = arguments.trials * arguments.steps
    curves: dict[str, list[list[CurvePoint]]] = {"random": [], "asha": []}
    with tempfile.TemporaryDirectory() as place:
        for seed in range(arguments.seeds):
            for name, scheduler in (("random", "none"), ("asha", "asha")):
                more = arguments.trials if name == "random" else 4 * arguments.trials
                curves[name].append(
                    search(
                        Path(place) / f"{name}-{seed}",
                        arguments,
                        f"tune.scheduler={scheduler}",
                        f"tune.trials={more}",
                        f"seed={seed}",
                    )
                )
    print(
        f"{'seed':<6}{'random':>10}{'asha':>10}   asha reached random's score after this share of "
        "its steps"
    )
    rows = []
    for seed, (plain, early) in enumerate(zip(curves["random"], curves["asha"], strict=True)):
        end = best_within(plain, budget)
        reached = next((point.steps for point in early if point.score >= end), None)
        rows.append((end, best_within(early, budget), reached))
        share = "not" if reached is None else f"{reached / budget:.0%}"
        print(f"{seed:<6}{end:>10.3f}{rows[-1][1]:>10.3f}   {share}")
    print(
        f"{'mean':<6}{mean(row[0] for row in rows):>10.3f}{mean(row[1] for row in rows):>10.3f}   "
        f"of {budget} steps"
    )
    if arguments.plot:
        plot(curves, budget, arguments.plot)


def plot(curves: dict[str, list[list[CurvePoint]]], budget: int, path: Path) -> None:
    """Best score over steps spent, a line a seed and the mean of each kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6.5, 3.6))
    grid = [budget * part / 200 for part in range(201)]
    for (name, of_kind), color in zip(curves.items(), ("tab:gray", "tab:green"), strict=True):
        for curve in of_kind:
            panel.plot(
                grid, [best_within(curve, int(step)) for step in grid], color=color, alpha=0.3, lw=1
            )
        means = [mean(best_within(curve, int(step)) for curve in of_kind) for step in grid]
        panel.plot(grid, means, color=color, lw=2.5, label=f"{name}, mean of {len(of_kind)} seeds")
    panel.set_xlabel("training steps spent, all trials together")
    panel.set_ylabel("best held-out accuracy")
    panel.set_ylim(bottom=0)
    panel.legend(loc="lower right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def cost(arguments: argparse.Namespace) -> None:
    """Print the ratio of a search's time to that of its trials by hand."""
    ratios = []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            began = time.perf_counter()
            common = [
                "tune.scheduler=none",
                f"tune.trials={arguments.trials}",
                "tune.concurrent=1",
                "seed=1",
            ]
            search(folder / "tune", arguments, *common)
            tuned = time.perf_counter() - began
            began = time.perf_counter()
            for at in range(arguments.trials):
                config = load_config(folder / "tune" / "trials" / f"trial-{at:04d}" / "config.yaml")
                config.run.dir = str(folder / f"bare-{at}")
                path = folder / f"bare-{at}.yaml"
                path.write_text(dump_config(config), encoding="utf-8")
                for command in (["train", str(path)], ["eval", config.run.dir, "--task", "digits"]):
                    subprocess.run(
                        [sys.executable, "-m", "mmscale", *command], check=True, capture_output=True
                    )
            bare = time.perf_counter() - began
        ratios.append(tuned / bare)
        print(
            f"round {number}: search {tuned:.0f} s, by hand {bare:.0f} s, ratio {ratios[-1]:.3f}",
            flush=True,
        )
    print(f"overhead of tuning {median(ratios) - 1:+.1%} (median of {len(ratios)})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("gain", "cost"))
    parser.add_argument(
        "--steps", type=int, default=81, help="of a whole trial (default: %(default)s)"
    )
    parser.add_argument("--sequences", type=int, default=1, help="of a step (default: %(default)s)")
    parser.add_argument(
        "--trials", type=int, default=6, help="of the random search (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="gain (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="cost (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="F.png", help="gain: draw the curves")
    arguments = parser.parse_args()
    {"gain": gain, "cost": cost}[arguments.what](arguments)


if __name__ == "__main__":
    main()
