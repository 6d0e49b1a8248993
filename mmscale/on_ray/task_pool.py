"""`TaskPool` on a Ray cluster: a lost worker or machine repeats its tasks alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from mmscale.config import RayConfig
from mmscale.errors import UserError
from mmscale.on_ray.connect import ray_cluster

Task = TypeVar("Task")
Result = TypeVar("Result")

# How often a task is given anew to another worker when one is lost.
_RETRIES = 5
# Handed out at a time, for each CPU of the cluster: the next is there when one is done.
_AHEAD = 2


class RayPool:
    """Tasks of one CPU each. Files are named as here, so the machines share them."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def run(
        self, function: Callable[[Task], Result], tasks: Iterable[Task], count: int
    ) -> Iterator[tuple[int, Result]]:
        """As `WorkerPool.run`.

        Raises `UserError` also where a task's workers were lost again and again.
        """
        ray = self._ray
        # What the task raises is its own; only a lost worker is a reason to repeat it.
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES, retry_exceptions=False)(function)
        most = max(1, int(_AHEAD * ray.cluster_resources().get("CPU", 1)))
        waiting, running = iter(enumerate(tasks)), dict[Any, int]()
        failed: dict[int, BaseException] = {}
        while True:
            while not failed and len(running) < most and (numbered := next(waiting, None)):
                number, task = numbered
                running[remote.remote(task)] = number
            if not running:
                break
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                number = running.pop(reference)
                try:
                    yield number, ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    failed[number] = error.cause if error.cause is not None else error
                    if "No module named" in str(error):
                        failed[number] = UserError(
                            "a machine of the Ray cluster lacks a module "
                            f"({str(error).strip().splitlines()[-1]}); install the same mmscale "
                            "and plug-ins on all of them"
                        )
                except ray.exceptions.RayError as error:
                    reason = " ".join(str(error).split())[:200]
                    failed[number] = UserError(
                        f"task {number + 1} of {count}: its workers on the Ray cluster were lost "
                        f"{_RETRIES + 1} times ({reason}); give machines with more memory"
                    )
        if failed:
            raise failed[min(failed)]


@contextmanager
def ray_pool(address: str = "") -> Iterator[RayPool]:
    """A pool on the cluster at ``address``, else at ``$RAY_ADDRESS``, else on one that is started
    here with this machine's cores.

    Raises `UserError` where Ray is not installed or the cluster cannot be reached.
    """
    with ray_cluster(RayConfig(address=address)) as ray:
        yield RayPool(ray)
