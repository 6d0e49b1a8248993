"""What the commands share: how a verb, a config and its overrides are declared."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def verb(
    parent: Any,
    name: str,
    run: Callable[[argparse.Namespace], Any],
    text: str,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    """A command of `parent` that calls `run`; `text` is its help, `epilog` its examples."""
    parser: argparse.ArgumentParser = parent.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter if epilog else argparse.HelpFormatter,
    )
    parser.add_argument(
        "--json", action="store_true", help="print one machine-readable result on stdout"
    )
    parser.set_defaults(run=run)
    return parser


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """``--plugin``, for every verb that reads a config, a run, a checkpoint or a release."""
    parser.add_argument(
        "--plugin",
        dest="plugins",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module, which adds objectives, stems and so on, such as "
        "my_package.my_module (may be repeated)",
    )


def add_config(parser: argparse.ArgumentParser, needed: bool = True) -> None:
    """A config file, any number of overrides, and plug-ins."""
    parser.add_argument(
        "config",
        nargs=None if needed else "?",
        help="a YAML file, such as configs/train/digits.yaml",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as train.steps=200 seed=1"
    )
    add_plugins(parser)
