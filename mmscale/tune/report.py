"""What a search leaves behind: best.yaml, a table of the trials, and a page to look at."""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any

from mmscale.config import Config
from mmscale.config_file import to_tree
from mmscale.durable import write_durably
from mmscale.strict_yaml import write_yaml
from mmscale.tune.page import write_page
from mmscale.tune.records import Trial, read_lines
from mmscale.tune.space import Space
from mmscale.tune.transfer import Transfer


def write_report(
    *,
    folder: Path,
    config: Config,
    space: Space,
    trials: list[Trial],
    best: Trial,
    larger: Transfer,
) -> Path:
    """Write best.yaml, trials.parquet and tune.html to ``folder``; returns the path of the
    first.
    """
    path = folder / "best.yaml"
    tree = to_tree(space.config(best.point))
    tree["run"]["dir"] = str(Path(config.run.dir) / "best")
    del tree["tune"]
    head = (
        f"# {best.name} of {len(trials)}: {config.tune.metric} {best.score:.6g} "
        f"after {best.steps} steps\n"
    )
    if best.parents:
        head += (
            "# It took over others' weights on the way (tune.jsonl); trained from the start it may "
            "end elsewhere.\n"
        )
    text = head + write_yaml(tree)
    write_durably(path, text)
    write_table(folder / "trials.parquet", space, trials)
    lines = [
        f"{len(trials)} trials by {config.tune.search} and {config.tune.scheduler}; best: "
        f"{best.name}, {config.tune.metric} {best.score:.4g} after {best.steps} steps.",
        f"mmscale train {path}",
        rate_holds(config, best),
    ]
    if larger.scores:
        lines.append(
            f"Larger model: {larger.describe(config.tune.better(), best_rate(config, best))}."
        )
    losses = {trial.number: _losses(folder / "trials" / trial.name) for trial in trials}
    write_page(
        path=folder / "tune.html",
        lines=[html.escape(line) for line in lines],
        names=list(space),
        trials=trials,
        best=best,
        losses=losses,
        config=config,
    )
    return path


def write_table(path: Path, space: Space, trials: list[Trial]) -> None:
    """A row for each trial; a column for each searched key, null where its condition did not
    hold.
    """
    import pandas

    rows = [
        {
            "trial": trial.name,
            "status": trial.status,
            "score": trial.score,
            "steps": trial.steps,
            "seconds": sum(trial.seconds.values()),
            "reason": trial.reason,
            "parents": ", ".join(f"{parent}@{step}" for parent, step in trial.parents),
            **{name: _cell(trial.point.get(name)) for name in space},
        }
        for trial in trials
    ]
    pandas.DataFrame(rows).to_parquet(path, index=False)


def best_rate(config: Config, best: Trial) -> float:
    """The best trial's peak learning rate."""
    return float(best.point.get("train.optimizer.lr", config.train.optimizer.lr))


def rate_holds(config: Config, best: Trial) -> str:
    """How the rate that was found carries over to wider models."""
    width = int(best.point.get("model.width", config.model.width))
    base = int(best.point.get("model.base_width", config.model.base_width))
    rate = best_rate(config, best)
    if base:
        return (
            f"Rate {rate:.3g} was found with model.base_width={base}: keep both, and a wider model "
            f"trains its matrices at rate × {base} / width by itself (muP, docs/optimisers.md)."
        )
    return (
        f"Rate {rate:.3g} was found at width {width} without muP: for a wider model set "
        f"model.base_width={width}, which scales it (docs/optimisers.md)."
    )


def _cell(value: Any) -> Any:
    return (
        value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)
    )


def _losses(folder: Path) -> list[tuple[int, float]]:
    """(step, training loss) of a trial."""
    rows = read_lines(folder / "metrics.jsonl")
    return [(row["step"], row["loss"]) for row in rows if math.isfinite(row["loss"])]
