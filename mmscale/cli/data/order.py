"""`mmscale data order`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mmscale.cli.verb import add_config, verb
from mmscale.errors import UserError


def add(verbs: Any) -> None:
    """Declare the command `data order` and its options."""
    order = verb(
        verbs, "order", _order, "print which rank sees which samples at which step, as JSON lines"
    )
    add_config(order)
    order.add_argument("--steps", required=True, metavar="A:B", help="steps from A to B - 1")
    order.add_argument(
        "--world", type=int, default=1, metavar="W", help="number of ranks (default: 1)"
    )
    order.add_argument(
        "--nodes",
        type=int,
        default=1,
        metavar="N",
        help="machines that the ranks stand on, equally many on each (default: 1); sequences of "
        "sets on a server are dealt within a machine",
    )
    order.add_argument("--rank", type=int, metavar="R", help="print this rank's share only")


def _order(arguments: argparse.Namespace) -> None:
    from mmscale.config_file import load_config
    from mmscale.data.planning.step_plan import check_world
    from mmscale.train.prepare import finished_steps, open_plan, prepare_data, run_tokenizer

    config = load_config(arguments.config, arguments.overrides, arguments.plugins)
    first, _, last = arguments.steps.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise UserError(f"--steps {arguments.steps}: write A:B, such as 0:10")
    if arguments.world < 1 or (
        arguments.rank is not None and not 0 <= arguments.rank < arguments.world
    ):
        raise UserError(
            f"--rank {arguments.rank} --world {arguments.world}: a rank counts from 0 to W-1"
        )
    if arguments.nodes < 1 or arguments.world % arguments.nodes:
        raise UserError(
            f"--nodes {arguments.nodes}: does not divide the ranks (--world {arguments.world})"
        )
    check_world(config.data.sequences, arguments.world)
    prepare_data(config)
    plan = open_plan(config, run_tokenizer(config), finished_steps(Path(config.run.dir)))
    per_node = arguments.world // (arguments.nodes if plan.is_remote else 1)
    for step in range(int(first), int(last)):
        shares = [
            (rank, sequence)
            for rank in range(arguments.world)
            for sequence in plan.share(step, rank, arguments.world, _node(rank, per_node))
        ]
        for rank, sequence in sorted(shares, key=lambda share: share[1].number):
            if arguments.rank is None or rank == arguments.rank:
                planned, samples = plan.sets[sequence.set_index], sequence.samples.tolist()
                row = {
                    "step": step,
                    "sequence": sequence.number,
                    "rank": rank,
                    "keys": list(map(planned.dataset.key, samples)),
                    "set": planned.name,
                    "shards": list(map(planned.dataset.shard, samples)),
                }
                if planned.config.long == "split":
                    row["parts"] = sequence.parts.tolist()
                print(json.dumps(row, ensure_ascii=False))


def _node(rank: int, ranks: int) -> range:
    """The ranks of ``rank``'s machine, of ``ranks`` each."""
    first = rank - rank % ranks
    return range(first, first + ranks)
