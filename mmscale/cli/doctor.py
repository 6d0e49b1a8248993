"""`mmscale doctor`."""

from __future__ import annotations

import argparse
from typing import Any

from mmscale.cli.verb import add_config, verb

EPILOG = """\
Checks versions, GPUs, the network and the clocks between machines, space on disk and in shared
memory, the shards as every rank sees them, and the speed of an all-reduce.

Under a launcher every process runs this same command, and the first one prints. Without a launcher
it checks this machine. The scripts of launch/ run the same checks before the model is built
(mmscale train --preflight).

Exit status: 0: no finding, or only warnings; 1: a check failed; 2: bad input.

examples:
  mmscale doctor configs/train/digits.yaml
  torchrun --nproc-per-node 8 -m mmscale doctor my.yaml
  srun torchrun … -m mmscale doctor my.yaml --json
"""


def add(verbs: Any) -> None:
    """Declare the command `doctor` and its options."""
    doctor = verb(
        verbs, "doctor", _doctor, "check a cluster before a run, and name the sick machine", EPILOG
    )
    add_config(doctor, needed=False)
    doctor.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds to wait for a rank before it counts as sick (default: 60)",
    )


def _doctor(arguments: argparse.Namespace) -> dict[str, Any] | None:
    from mmscale.config_file import load_config
    from mmscale.doctor.check import FAILED
    from mmscale.doctor.examine import examine
    from mmscale.errors import UserError
    from mmscale.parallel.ranks import meet_ranks, read_environment

    if not arguments.patience > 0:
        raise UserError(f"--patience {arguments.patience:g}: above 0 seconds")
    config = (
        load_config(arguments.config, arguments.overrides, arguments.plugins)
        if arguments.config
        else None
    )
    report = examine(config, meet_ranks(arguments.patience), patience_s=arguments.patience)
    is_first = read_environment()[0] == 0
    if is_first:
        if arguments.json:
            import json

            print(json.dumps(report.facts(), ensure_ascii=False))
        else:
            print(report.table())
    if report.verdict == FAILED:
        raise SystemExit(1)
    return None
