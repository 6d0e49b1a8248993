"""Reaching a Ray cluster, or starting one in this machine's own processes."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmscale.config import RayConfig
from mmscale.data.worker_pool import available_cores
from mmscale.errors import UserError
from mmscale.messages import report

_OBJECT_STORE_BYTES = 100_000_000  # nothing large travels through it
_REPORT_EVERY_S = 60.0
_SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    # Paths in a config are relative to where the command was given.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    # A trial that fails by its settings has no score to report.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


def import_ray() -> Any:
    """The package ``ray``. Raises `UserError` where it is not installed."""
    os.environ.update({name: os.environ.get(name, value) for name, value in _SETTINGS.items()})
    try:
        import ray
        import ray.train
        import ray.tune
    except ImportError as error:
        raise UserError(f"Ray is needed ({error}); pip install 'mmscale[ray]'") from None
    return ray


@contextmanager
def ray_cluster(config: RayConfig, quiet: bool = True, trains: bool = False) -> Iterator[Any]:
    """The package ``ray``, connected: to ``address``, else ``$RAY_ADDRESS``, else to a cluster of
    this process alone.

    ``quiet``: what workers print stays in Ray's logs. ``trains``: Ray Train will be used, which
    needs the dashboard to free the places of a run that was cut off.

    Raises:
        UserError: Ray is not installed, or the cluster cannot be reached.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "1" if config.usage_stats else "0"
    ray = import_ray()
    address = config.address or os.environ.get("RAY_ADDRESS", "")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": not quiet}
    logging.getLogger("ray").setLevel(logging.ERROR)
    for name in ("ray.tune", "ray.train", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    here = ray.is_initialized()
    try:
        if here:
            pass
        elif address:
            ray.init(address=address, runtime_env={"env_vars": _passed_on()}, **options)
        else:
            ray.init(
                address="local", num_cpus=available_cores(), include_dashboard=trains,
                object_store_memory=_OBJECT_STORE_BYTES, runtime_env={"env_vars": _passed_on()},
                **options,
            )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        where = address or "of this machine"
        raise UserError(
            f"Ray cluster {where}: cannot be reached ({reason}); is it up, and the address right?"
        ) from None
    if address:
        report(f"on the Ray cluster at {address}: {describe_cluster(ray)}")
    try:
        yield ray
    finally:
        if not here:
            ray.shutdown()


def describe_cluster(ray: Any) -> str:
    """The nodes that are up and what each has, for people."""
    return "; ".join(
        f"{node['NodeManagerAddress']} {_describe(node['Resources'])}"
        for node in ray.nodes()
        if node["Alive"]
    )


def placement_fault(ray: Any, processes: list[dict[str, float]]) -> str:
    """Why ``processes``, each needing CPUs and GPUs of one node, have no room even on the idle
    cluster; else empty.
    """
    free = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for needs in sorted(processes, key=_by_size):
        node = next(
            (
                resources
                for resources in free
                if all(resources.get(kind, 0) >= amount for kind, amount in needs.items())
            ),
            None,
        )
        if node is None:
            counts = Counter(map(_describe, processes))
            wanted = " and ".join(f"{count} × ({needs})" for needs, count in counts.items())
            return (
                f"waits for room for {wanted}; the cluster has {describe_cluster(ray) or 'no node'}"
            )
        for kind, amount in needs.items():
            node[kind] -= amount
    return ""


def _by_size(process: dict[str, float]) -> tuple[float, float]:
    """Sorts the largest first."""
    return -process.get("GPU", 0), -process.get("CPU", 0)


def wait_for_room(ray: Any, processes: list[dict[str, float]], wait_s: float, whose: str) -> None:
    """Wait until the cluster can hold ``processes`` at all, and report it. Raises `UserError` after
    ``wait_s`` seconds.
    """
    began, reported_at = time.monotonic(), -math.inf
    while fault := placement_fault(ray, processes):
        waited = time.monotonic() - began
        if waited >= wait_s:
            raise UserError(
                f"{whose} {fault}; add machines, ask for fewer processes, or lower ray.cpus or "
                f"ray.gpus (waited {waited:.0f} s, ray.wait_s)"
            )
        if waited - reported_at > _REPORT_EVERY_S:
            reported_at = waited
            report(f"{whose} {fault}")
        time.sleep(min(2.0, wait_s - waited + 0.01))


def process_needs(ray: Any, config: RayConfig) -> dict[str, float]:
    """CPUs and GPUs of one process."""
    gpus = config.gpus if config.gpus >= 0 else float(bool(ray.cluster_resources().get("GPU")))
    return {"CPU": config.cpus, **({"GPU": gpus} if gpus else {})}


def _passed_on() -> dict[str, str]:
    """Environment of the workers: our settings, and where this process finds its modules."""
    out = {name: os.environ[name] for name in _SETTINGS}
    if "PYTHONPATH" in os.environ:
        out["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return out


def _describe(resources: dict[str, float]) -> str:
    parts = [f"{resources[kind]:g} {kind}" for kind in ("CPU", "GPU") if resources.get(kind)]
    return ", ".join(parts) or "no CPU"
