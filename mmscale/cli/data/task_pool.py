"""Options that say who works on shards or parts of a source: processes here, or a Ray cluster."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from mmscale.data.worker_pool import TaskPool, WorkerPool, available_cores
from mmscale.errors import UserError


def add_task_pool(parser: argparse.ArgumentParser, same: str) -> None:
    """Add ``--workers`` and ``--ray``. ``same``: what does not depend on them."""
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help=f"processes on this machine (default: all cores); {same}",
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="work on a Ray cluster: at ADDRESS, else at $RAY_ADDRESS, else one of this machine's "
        "cores; all its machines must see the files by the same names; a lost machine's part is "
        f"done again by others; {same}",
    )


@contextmanager
def open_task_pool(arguments: argparse.Namespace) -> Iterator[TaskPool]:
    """The pool that the options ask for."""
    if arguments.ray is not None:
        if arguments.workers is not None:
            raise UserError("--workers is for this machine, --ray for a cluster; leave one out")
        from mmscale.on_ray.task_pool import ray_pool

        with ray_pool(arguments.ray) as pool:
            yield pool
        return
    workers = available_cores() if arguments.workers is None else arguments.workers
    with WorkerPool(workers) as here:
        yield here
