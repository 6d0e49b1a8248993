"""Do learning rates found on a narrow model hold on a wide one? Trains a small language model at
several widths.

    python tools/prepare_thucnews.py --source FOLDER_OF_THUCNEWS
    python tools/mup.py --plot docs/images/mup.png

For each width and learning rate, with muP (model.base_width) and with the standard parametrisation:
the mean loss of the last steps on Chinese headlines. About 10 minutes. Prints the table, the best
rate of each width marked.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import mean

from tqdm import tqdm

from mmscale.config import Config, ModelConfig, OptimizerConfig, SetConfig, TaskConfig
from mmscale.train.loop import train

WIDTHS = (64, 128, 256)
RATES = tuple(2.0**power for power in range(-12, -3))
_LAST = 15  # steps whose mean loss is the result
_NOT_LEARNED = 50.0  # a loss that stands for a run that came apart


def config_of(shards: str, width: int, lr: float, base_width: int, steps: int) -> Config:
    """Two blocks of heads of 32, next-token prediction on headlines."""
    config = Config(
        model=ModelConfig(
            width=width,
            layers=2,
            heads=width // 32,
            kv_heads=width // 32,
            head_dim=32,
            hidden=3 * width,
            stem_width=4,
            embed_dim=4,
            base_width=base_width,
        )
    )
    config.data.sets = {"titles": SetConfig(shards=[shards], tasks=[TaskConfig(target="text")])}
    config.data.seq_len, config.data.sequences, config.data.workers = 256, 4, 0
    config.data.tokenizer.vocab_size = 2048
    config.train.steps, config.train.micro_batch, config.train.precision = steps, 4, "fp32"
    config.train.checkpoint_every = steps
    # Every width decays alike: without weight decay the rates alone are compared.
    config.train.optimizer = OptimizerConfig(
        lr=lr, warmup_steps=steps // 10, schedule="wsd", weight_decay=0.0
    )
    config.run.progress = config.run.tensorboard = False
    return config


def final_loss(config: Config, folder: Path) -> float:
    """Mean loss of the last steps, nats a token."""
    config.run.dir = str(folder)
    train(config)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    loss = mean(row["loss"] for row in rows[-_LAST:])
    return min(loss, _NOT_LEARNED) if loss == loss else _NOT_LEARNED


def plot(losses: dict[str, dict[int, dict[float, float]]], path: Path) -> None:
    """Loss over rate, a line a width, one panel a parametrisation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for panel, (name, by_width) in zip(panels, losses.items(), strict=True):
        for width, by_rate in by_width.items():
            (line,) = panel.plot(
                list(by_rate), list(by_rate.values()), marker="o", label=f"width {width}"
            )
            best = min(by_rate, key=by_rate.__getitem__)
            panel.plot([best], [by_rate[best]], marker="*", markersize=15, color=line.get_color())
        panel.set_xscale("log", base=2)
        panel.set_title(name)
        panel.set_xlabel("peak learning rate")
        panel.legend()
    panels[0].set_ylabel("final loss, nats a token")
    lowest = min(
        loss
        for by_width in losses.values()
        for by_rate in by_width.values()
        for loss in by_rate.values()
    )
    panels[0].set_ylim(lowest - 0.1, lowest + 1.5)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shards", default="build/data/thucnews/train", help="default: %(default)s"
    )
    parser.add_argument(
        "--steps", type=int, default=200, help="of every run (default: %(default)s)"
    )
    parser.add_argument("--plot", type=Path, metavar="F.png", help="write the curves as a picture")
    arguments = parser.parse_args()
    kinds = {"muP": WIDTHS[0], "standard": 0}
    losses: dict[str, dict[int, dict[float, float]]] = {name: {} for name in kinds}
    runs = [(name, width, rate) for name in kinds for width in WIDTHS for rate in RATES]
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, width, rate) in enumerate(tqdm(runs, unit="run", file=sys.stderr)):
            config = config_of(arguments.shards, width, rate, kinds[name], arguments.steps)
            loss = final_loss(config, Path(folder) / str(number))
            losses[name].setdefault(width, {})[rate] = loss
    for name, by_width in losses.items():
        print(
            f"{name:<10}"
            + "".join(
                f"  2^{rate.as_integer_ratio()[1].bit_length() * -1 + 1:<6}" for rate in RATES
            )
        )
        for width, by_rate in by_width.items():
            best = min(by_rate, key=by_rate.__getitem__)
            cells = (f"{loss:7.3f}{'*' if rate == best else ' '}" for rate, loss in by_rate.items())
            print(f"  {width:<8}" + " ".join(cells))
    if arguments.plot:
        plot(losses, arguments.plot)


if __name__ == "__main__":
    main()
