"""`mmscale tune`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from mmscale.cli.verb import add_config, verb

EPILOG = """\
The config is that of a run, with a group `tune`: which keys to search, how, and by which score.
mmscale train --keys prints all keys.

Ray is started on this machine, unless $RAY_ADDRESS or ray.address names a cluster. All its machines
must see run.dir. The results are in run.dir: best.yaml, which mmscale train takes as it is,
trials.parquet and tune.html.

examples:
  mmscale tune configs/tune/digits.yaml
  mmscale tune configs/tune/digits.yaml tune.trials=32 tune.scheduler=pbt run.dir=runs/pbt
  mmscale tune configs/tune/digits.yaml --resume         continue after a stop of any kind
  mmscale tune configs/tune/digits.yaml --dry-run        show the first trials, train nothing
  mmscale train runs/tune-digits/best.yaml
"""


def add(verbs: Any) -> None:
    """Declare the command `tune` and its options."""
    tune = verb(verbs, "tune", _tune, "search for a run's best settings with Ray", EPILOG)
    add_config(tune)
    tune.add_argument("--resume", action="store_true", help="continue the search in run.dir")
    tune.add_argument(
        "--dry-run", action="store_true", help="print what would be searched, and train nothing"
    )


def _tune(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.config_file import load_config

    config = load_config(arguments.config, arguments.overrides, arguments.plugins)
    if arguments.dry_run:
        return _dry_run(config, arguments.json)
    from mmscale.tune.run import tune
    from mmscale.tune.space import format_point

    result = tune(config, arguments.resume)
    if not arguments.json:
        print(
            f"{result.run_dir}: {result.trials} trials ({result.finished} to the end, "
            f"{result.stopped} stopped early, {result.failed} failed), "
            f"{result.steps:,} steps in all"
        )
        score = f"{config.tune.metric} {result.best_score:.4g}"
        print(f"best: {result.best_trial}, {score}: {format_point(result.best_point)}")
        for row in result.transfer:
            score = "no score" if row["score"] is None else f"{row['score']:.4g}"
            print(f"larger model, rate {row['rate']:.3g}: {score}")
        print(f"mmscale train {result.best_config}")
    return asdict(result)


def _dry_run(config: Any, as_json: bool) -> dict[str, Any]:
    from mmscale.tune.run import check_metric
    from mmscale.tune.space import Space, format_point
    from mmscale.tune.transfer import check_transfer

    check_metric(config)
    space, tune = Space(config), config.tune
    check_transfer(config, space)
    first = (
        list(space.grid())
        if tune.search == "grid"
        else [space.draw(config.seed, at) for at in range(5)]
    )
    stops = tune.stops(config.train.steps)
    if not as_json:
        for name, values in space.describe().items():
            print(f"{name}: {values}")
        what = f"{len(first)} combinations" if tune.search == "grid" else "such as"
        print(
            f"{tune.trials} trials by {tune.search} and {tune.scheduler}, scored after {stops} "
            f"steps; {what}:"
        )
        for point in first[:20]:
            print(f"  {format_point(point)}")
    return {"space": space.describe(), "stops": stops, "points": first}
