"""A pool of processes that die with their parent and report the first error, whatever their
number.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self, TypeVar

from mmscale.errors import UserError
from mmscale.plugins import import_plugins, imported_plugins

Task = TypeVar("Task")
Result = TypeVar("Result")


class TaskPool(Protocol):
    """Processes, here or on a cluster, that call a function for many tasks (`WorkerPool.run`)."""

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], count: int
    ) -> Iterator[tuple[int, Result]]: ...


class WorkerPool:
    """A context manager; ``workers`` = 1 does everything in the calling process."""

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise UserError(f"workers: {workers} is below 1; use the number of cores")
        self._workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None  # it may be entered again

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], count: int
    ) -> Iterator[tuple[int, Result]]:
        """(number of the task, result) of each of the ``count`` tasks, in the order in which they
        finish.

        Tasks are taken from the iterable as they are needed, a few ahead. When one fails, those
        already begun still end and are yielded; then the error of the first task that failed is
        raised, which is the same one for every number of workers.
        """
        if self._workers == 1 or count < 2:
            for number, task in enumerate(tasks):
                yield number, function(task)
            return
        if self._executor is None:
            # Not forked: a fork copies locks that other threads of this process may hold.
            self._executor = ProcessPoolExecutor(
                self._workers,
                multiprocessing.get_context("spawn"),
                initializer=_begin_worker,
                initargs=(imported_plugins(),),
            )
        running: dict[Future[Result], int] = {}
        failed: dict[int, BaseException] = {}
        waiting = iter(enumerate(tasks))
        try:
            while True:
                while (
                    not failed
                    and len(running) < 2 * self._workers
                    and (numbered := next(waiting, None))
                ):
                    number, task = numbered
                    with _interrupts_held():  # a worker may be started here
                        running[self._executor.submit(function, task)] = number
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    number = running.pop(future)
                    error = future.exception()
                    if error is None:
                        yield number, future.result()
                    else:
                        failed[number] = error
        except BrokenProcessPool as broken:  # noticed while a task was handed over
            failed[-1] = broken
        if failed:
            first = failed[min(failed)]
            if isinstance(first, BrokenProcessPool):
                raise UserError(
                    "a worker process was killed, perhaps for want of memory; "
                    "give the command again with fewer workers"
                ) from None
            raise first


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C: it is for the parent, which ends them in
    order.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(plugins: list[str]) -> None:
    """Called in a worker: what the tasks' objectives are made of is known there, too."""
    exit_with_parent()
    import_plugins(plugins)


def exit_with_parent() -> None:
    """Called in a worker: it ends at once when the process that started it does, which may be
    killed.

    Left alone, an executor's workers wait for tasks for ever, and so do those of a DataLoader whose
    starter, the forkserver, outlives the rank.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
