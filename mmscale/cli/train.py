"""`mmscale train`."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mmscale.cli.verb import add_config, verb
from mmscale.errors import UserError
from mmscale.recipes.names import recipe_names

if TYPE_CHECKING:
    from mmscale.config import Config
    from mmscale.train.loop import TrainResult

# torchrun kills its ranks so many seconds after a stop signal: longer than train.grace_s, as in
# launch/env.sh.
_SHUTDOWN_S = 170

EPILOG = """\
Under a launcher every process runs this same command. On one machine --ranks starts the processes.
parallel.strategy says how the work is split; where it is auto, accelerate's own config does.

If a run stops, the same command resumes it from the newest checkpoint in run.dir.

examples:
  mmscale train --recipe classify-images shards/       # no config: the recipe is fitted to the data
  mmscale train configs/train/digits.yaml train.steps=200
  mmscale train configs/train/digits.yaml --ranks 2
  torchrun --nproc-per-node 8 -m mmscale train configs/train/digits.yaml parallel.strategy=fsdp
  accelerate launch --config_file configs/accelerate/zero3.yaml \\
      -m mmscale train configs/train/digits.yaml
  mmscale train configs/train/digits.yaml --ray 2
  deepspeed --num_gpus 8 --module mmscale train configs/train/digits.yaml parallel.strategy=zero2
"""


def add(verbs: Any) -> None:
    """Declare the command `train` and its options."""
    train = verb(verbs, "train", _train, "train as a config says, or resume", EPILOG)
    add_config(train, needed=False)
    recipe = train.add_argument_group(
        "recipes", "in place of a config: a job, and the folder of packed samples it learns from"
    )
    recipe.add_argument(
        "--recipe", metavar="NAME", help=f"one of {', '.join(recipe_names())} (docs/recipes.md)"
    )
    recipe.add_argument(
        "--label", default="", metavar="FIELD", help="the field of the classes, such as json.topic"
    )
    recipe.add_argument(
        "--text", default="", metavar="FIELD", help="the field of the texts, such as json.title"
    )
    recipe.add_argument(
        "--print-config", action="store_true",
        help="print the config that would be used, to begin one of your own with, and stop",
    )  # fmt: skip
    train.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="start N processes on this machine, as `torchrun --standalone --nproc-per-node N` "
        "does",
    )
    train.add_argument(
        "--ray",
        metavar="N",
        help="start N processes on a Ray cluster ($RAY_ADDRESS, or this machine alone); "
        "with MIN:MAX a run continues with fewer when machines are lost",
    )
    train.add_argument(
        "--preflight",
        action="store_true",
        help="check all machines first, as `mmscale doctor` does, and do not start on sick ones",
    )
    train.add_argument(
        "--keys", action="store_true", help="print every config key with its default and meaning"
    )


def start_ranks(count: int) -> None:
    """Become torchrun with ``count`` processes of this very command. Raises `UserError` under a
    launcher.
    """
    if count < 1:
        raise UserError(f"--ranks {count}: at least one process is needed")
    if "RANK" in os.environ:
        raise UserError("--ranks: a launcher has started the processes already; leave it out")
    command = sys.argv[1:]
    at = next(number for number, word in enumerate(command) if word.startswith("--ranks"))
    del command[at : at + (1 if "=" in command[at] else 2)]
    launch = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(count),
        "-m",
        "mmscale",
    ]
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SHUTDOWN_S))
    os.execv(sys.executable, [sys.executable, "-m", *launch, *command])


def _train(arguments: argparse.Namespace) -> dict[str, Any] | None:
    from mmscale.config_file import describe_keys, dump_config
    from mmscale.data.loading.fork_server import start_fork_server

    if arguments.keys:
        for name, default, text in describe_keys():
            print(f"{name} (default {default or 'empty'})\n    {text}")
        return None
    if not arguments.config:
        raise UserError(_nothing_named(arguments.recipe))
    if arguments.ranks and arguments.ray:
        raise UserError(
            "--ranks starts processes here, --ray on a cluster; leave one of the two out"
        )
    if arguments.ranks and not arguments.print_config:
        start_ranks(arguments.ranks)
    config, preflight = _config(arguments), None
    if arguments.print_config:
        print(dump_config(config), end="")
        return None
    if arguments.preflight:
        from mmscale.doctor import examine

        preflight = examine.preflight
    if arguments.ray:
        from mmscale.on_ray.train import train_on_ray

        return _report(
            train_on_ray(config, *_ray_workers(arguments.ray), preflight), arguments.json
        )
    if config.data.workers:
        start_fork_server()  # which imports torch while we do
    from mmscale.parallel.ranks import read_environment
    from mmscale.train.loop import train

    result = train(config, preflight=preflight)
    if result.exit_code:
        raise SystemExit(result.exit_code)
    return _report(result, arguments.json) if read_environment()[0] == 0 else None


def _config(arguments: argparse.Namespace) -> Config:
    """Of the file that was named, or of the recipe for the folder that was."""
    from mmscale.config_file import load_config

    if not arguments.recipe:
        if arguments.label or arguments.text:
            raise UserError("--label and --text are for --recipe; a config names its fields itself")
        return load_config(arguments.config, arguments.overrides, arguments.plugins)
    from mmscale.recipes.recipe import recipe_config

    return recipe_config(
        arguments.recipe, arguments.config, arguments.overrides, arguments.plugins,
        label=arguments.label, text=arguments.text,
    )  # fmt: skip


def _nothing_named(recipe: str | None) -> str:
    if recipe:
        return f"--recipe {recipe}: name the folder of packed samples after it, such as shards/"
    return (
        "no config; try: mmscale train configs/train/digits.yaml, or "
        "mmscale train --recipe classify-images SHARDS"
    )


def _ray_workers(text: str) -> tuple[int, int]:
    """``"4"`` → (4, 4), ``"2:4"`` → (2, 4)."""
    fewest, colon, most = text.partition(":")
    numbers = [int(part) for part in (fewest, most if colon else fewest) if part.isdecimal()]
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise UserError(f"--ray {text}: is neither a number of processes nor MIN:MAX; use 4 or 2:4")
    return numbers[0], numbers[1]


def _report(result: TrainResult, as_json: bool) -> dict[str, Any]:
    if not as_json:
        print(
            f"{result.run_dir}: {result.steps} steps, {result.parameters:,} parameters, "
            f"{result.seconds:.0f} s"
        )
    return asdict(result)
