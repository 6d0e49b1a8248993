"""Plot a run's metrics.jsonl: loss per objective, learning rate, gradient norm and speed, as
a PNG.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path, help="a run directory")
    parser.add_argument("--out", type=Path, help="PNG to write (default: RUN_DIR/curves.png)")
    arguments = parser.parse_args()
    path = arguments.run_dir / "metrics.jsonl"
    if not path.is_file():
        print(f"{path}: no such file; name the run.dir of a run", file=sys.stderr)
        raise SystemExit(2)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    out = arguments.out or arguments.run_dir / "curves.png"
    plot(rows, out)
    print(out)


def plot(rows: list[dict], out: Path) -> None:
    """Draw four panels from metric rows."""
    steps = [row["step"] for row in rows]
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True)
    for name in rows[0]["losses"]:
        values = [row["losses"][name] for row in rows]
        if any(values):
            axes[0, 0].plot(steps, values, linewidth=1, label=name.replace("_", " "))
    axes[0, 0].set_yscale("log")
    axes[0, 0].legend()
    panels = [
        (axes[0, 0], "loss", None),
        (axes[0, 1], "learning rate", "lr"),
        (axes[1, 0], "gradient norm", "grad_norm"),
        (axes[1, 1], "tokens per second", "tokens_per_s"),
    ]
    for axis, title, key in panels:
        if key:
            axis.plot(steps, [row[key] for row in rows], linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
