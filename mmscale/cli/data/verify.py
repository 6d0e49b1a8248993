"""`mmscale data verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmscale.cli.data.task_pool import add_task_pool, open_task_pool
from mmscale.cli.verb import verb
from mmscale.errors import UserError
from mmscale.messages import write_line


def add(verbs: Any) -> None:
    """Declare the command `data verify` and its options."""
    verify_shards = verb(
        verbs,
        "verify",
        _verify,
        "compare every byte of shards with their index; fail on any fault",
    )
    verify_shards.add_argument("directory", help="a folder of indexed shards")
    add_task_pool(verify_shards, "the faults are the same")


def _verify(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.data.index.verify_shards import verify_shards

    with open_task_pool(arguments) as pool:
        faults = verify_shards(Path(arguments.directory), progress=True, pool=pool)
    if faults:
        for fault in faults:
            write_line(fault)
        raise UserError(
            f"{arguments.directory}: {len(faults)} faults, listed above; copy the shards again or "
            "index anew"
        )
    if not arguments.json:
        print(f"{arguments.directory}: no fault found")
    return {"directory": arguments.directory, "faults": 0}
