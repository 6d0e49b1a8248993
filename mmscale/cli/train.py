"""`mmscale train`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from mmscale.cli.verb import add_config, verb
from mmscale.errors import UserError


def add(verbs: Any) -> None:
    """Declare the command `train` and its options."""
    train = verb(verbs, "train", _train, "train as a config says; resumes by itself")
    add_config(train, needed=False)
    train.add_argument(
        "--keys", action="store_true", help="list every config key with its default and meaning"
    )


def _train(arguments: argparse.Namespace) -> dict[str, Any] | None:
    from mmscale.config_file import describe_keys, load_config

    if arguments.keys:
        for name, default, text in describe_keys():
            print(f"{name} (default {default or 'empty'})\n    {text}")
        return None
    if not arguments.config:
        raise UserError("no config; try: mmscale train configs/train/digits.yaml")
    from mmscale.parallel.ranks import read_environment
    from mmscale.train.loop import train

    result = train(load_config(arguments.config, arguments.overrides))
    if read_environment()[0] != 0:
        return None
    if not arguments.json:
        print(
            f"{result.run_dir}: {result.steps} steps, {result.parameters:,} parameters, {result.seconds:.0f} s"
        )
    return asdict(result)
