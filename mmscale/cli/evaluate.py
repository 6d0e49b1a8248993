"""`mmscale eval`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmscale.cli.verb import add_plugins, verb


def add(verbs: Any) -> None:
    """Declare the command `eval` and its options."""
    evaluate = verb(verbs, "eval", _evaluate, "score a run or a release on held-out shards")
    add_plugins(evaluate)
    evaluate.add_argument("target", help="a run directory or a release folder")
    evaluate.add_argument(
        "--data", metavar="DIR", help="held-out shards to use instead of the config's"
    )
    evaluate.add_argument(
        "--ema",
        action="store_true",
        help="of a run: score the moving averages of the weights (train.ema)",
    )
    evaluate.add_argument(
        "--task",
        action="append",
        metavar="NAME",
        help="compute only the score of this name, or of this kind; robustness: attack the "
        "classify scores and scan the training labels (may be repeated)",
    )


def _evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.evaluate.run import evaluate, format_table

    scores = evaluate(Path(arguments.target), arguments.data, arguments.task, ema=arguments.ema)
    if not arguments.json:
        print(format_table(scores))
    return scores
