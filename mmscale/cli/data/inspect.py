"""`mmscale data inspect`."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mmscale.cli.data.task_pool import add_task_pool, open_task_pool
from mmscale.cli.verb import verb

INSPECT_EPILOG = """\
Every sample is read and decoded once. The page shows what is broken, blank, clipped, silent or
empty, what is there twice, and what one folder shares with another, such as test with train. It is
one file without scripts. Open it in a browser. It needs `pip install 'mmscale[tables]'`.

examples:
  mmscale data inspect shards/train shards/test --html report.html
  mmscale data inspect shards/a shards/b --name train --name test --html report.html \\
      --table report.parquet
  mmscale data inspect shards/train --html report.html --sample 20000
"""


def add(verbs: Any) -> None:
    """Declare the command `data inspect` and its options."""
    inspect = verb(
        verbs,
        "inspect",
        _inspect,
        "write a page on how much data there is and what is wrong with it",
        INSPECT_EPILOG,
    )
    inspect.add_argument(
        "sources",
        nargs="+",
        metavar="DIR",
        help="a folder of indexed shards; several are compared, training data first",
    )
    inspect.add_argument("--html", required=True, metavar="F", help="the page to write")
    inspect.add_argument(
        "--name",
        action="append",
        default=[],
        help="what the page calls a folder, once for each DIR (default: the folder's name)",
    )
    inspect.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="examine N random samples of each folder, not all",
    )
    inspect.add_argument(
        "--table",
        metavar="F.parquet",
        help="also write what was found about every sample, for pandas",
    )
    inspect.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="which samples are drawn and shown (default: 0)",
    )
    add_task_pool(inspect, "the page is the same")


def _inspect(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.inspect.run import inspect

    with open_task_pool(arguments) if arguments.ray is not None else nullcontext() as pool:
        result = inspect(
            arguments.sources,
            Path(arguments.html),
            names=arguments.name,
            sample=arguments.sample,
            table=Path(arguments.table) if arguments.table else None,
            seed=arguments.seed,
            workers=arguments.workers,
            pool=pool,
        )
    if not arguments.json:
        for warning in result["warnings"]:
            print(f"{warning['severity']}: {warning['title']}")
        print(f"{arguments.html}: open it in a browser")
    return result
