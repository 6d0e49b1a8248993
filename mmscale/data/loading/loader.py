"""Micro-batches of one rank as a map-style data set behind PyTorch's own DataLoader.

Workers, prefetching and pinning are the DataLoader's job. Because item k is a pure function of k,
resuming is starting at another k, and the number of workers changes nothing.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from mmscale.batch import Batch
from mmscale.data.loading.assembler import Assembler
from mmscale.data.loading.shared_memory import SharedBatch, from_shared, release, to_shared
from mmscale.data.planning.step_plan import Plan, check_world
from mmscale.data.worker_pool import exit_with_parent
from mmscale.errors import UserError
from mmscale.plugins import import_plugins, imported_plugins

_numbers = count()  # of this process's loaders
_TERM_GRACE_S = 60.0  # until a terminated worker ends; the rank it works for may be saving


class MicroBatches(Dataset[Batch]):
    """Item k is micro-batch ``k % per_step`` of step ``k // per_step`` of this rank.

    ``node``: the ranks of this one's machine, among which is dealt what that reads; None: all.
    """

    def __init__(
        self,
        plan: Plan,
        assembler: Assembler,
        *,
        steps: int,
        micro_batch: int,
        rank: int,
        world: int,
        node: range | None = None,
    ) -> None:
        check_world(plan.sequences, world)
        self._plan, self._assembler = plan, assembler
        self._steps, self._micro_batch, self._rank, self._world = steps, micro_batch, rank, world
        self._node = node
        self.per_step = -(-(plan.sequences // world) // micro_batch)

    def __len__(self) -> int:
        return self._steps * self.per_step

    def __getitem__(self, index: int) -> Batch:
        step, micro = divmod(index, self.per_step)
        mine = self._plan.share(step, self._rank, self._world, self._node)
        chosen = mine[micro * self._micro_batch : (micro + 1) * self._micro_batch]
        return self._assembler.batch(self._plan.step(step), chosen)


class _ForWorkers(Dataset[Batch | UserError]):
    """Micro-batches as a worker process has them: what is wrong with the data comes in a batch's
    place.

    They are made anew at a worker's first item, because opening the data may fail, too.
    """

    def __init__(self, data: MicroBatches) -> None:
        self._data: MicroBatches | bytes = data
        self._plugins = imported_plugins()

    def __getitem__(self, index: int) -> Batch | UserError:
        try:
            if isinstance(self._data, bytes):
                import_plugins(self._plugins)
                # The pickle of the process that started this one, which would have sent it all the
                # same.
                self._data = pickle.loads(self._data)
            return self._data[index]  # type: ignore[return-value]
        except UserError as error:
            return error

    def __getstate__(self) -> dict[str, Any]:
        return {"_data": pickle.dumps(self._data), "_plugins": self._plugins}


def _hand_over(item: Batch | UserError, loader: str) -> SharedBatch | UserError:
    return item if isinstance(item, UserError) else to_shared(item, loader)


class LoadedStep(NamedTuple):
    """A step's micro-batches of this rank, and how long they were waited for."""

    batches: list[Batch]
    wait_s: float


def iterate_steps(
    data: MicroBatches, start: int, *, workers: int, prefetch: int, pin_memory: bool
) -> Iterator[LoadedStep]:
    """The micro-batches of each step from ``start`` on. Raises `UserError` if a worker is killed,
    or what it raises.
    """
    asked = time.perf_counter()
    name = f"loader {next(_numbers)}"
    loader = DataLoader(
        _ForWorkers(data) if workers else data,
        batch_size=None,
        sampler=range(start * data.per_step, len(data)),
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        collate_fn=partial(_hand_over, loader=name) if workers else None,  # type: ignore[arg-type]
        worker_init_fn=_prepare_worker,
        multiprocessing_context="forkserver" if workers else None,
    )
    micro: list[Batch] = []
    batches = iter(loader)
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, EOFError, ConnectionError) as error:
                # The DataLoader noticed it, or a batch was being handed over. What a worker reports
                # of itself is something else.
                noticed = not isinstance(error, RuntimeError) or str(error).startswith(
                    "DataLoader worker"
                )
                if not workers or not noticed or "in DataLoader worker process" in str(error):
                    raise
                raise UserError(
                    "a loader worker was killed, perhaps for want of memory; start again, with "
                    "lower data.workers or data.prefetch if it happens twice"
                ) from None
            if isinstance(batch, UserError):
                raise batch
            micro.append(from_shared(batch) if workers else batch)
            del batch
            if len(micro) == data.per_step:
                yield LoadedStep(micro, time.perf_counter() - asked)
                micro, asked = [], time.perf_counter()
    finally:
        del batches  # ends the workers, and the thread that pins
        release(name)


def _prepare_worker(worker: int) -> None:
    exit_with_parent()
    torch.set_num_threads(1)  # workers are the parallelism; more threads would fight with training
    # A signal to a whole job is for the ranks: they need their workers until they have saved.
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave_later)


def _leave_later(number: int, frame: object) -> None:
    end = threading.Timer(_TERM_GRACE_S, os._exit, [128 + number])
    end.daemon = True
    end.start()
