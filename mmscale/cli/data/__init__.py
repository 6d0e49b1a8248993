"""`mmscale data`: one thin command per verb, as in `mmscale.cli`."""

from __future__ import annotations

from typing import Any

from mmscale.cli.data import index, inspect, order, pack, verify

# In the order in which a user needs them, and `--help` lists them.
COMMANDS = (pack, index, verify, inspect, order)


def add(verbs: Any) -> None:
    """Declare the command `data` and its verbs."""
    data = verbs.add_parser("data", help="prepare, check and look at data").add_subparsers(
        required=True, metavar="COMMAND"
    )
    for command in COMMANDS:
        command.add(data)
