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
_TOLD_EVERY_S = 60.0
_SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in a config are relative to where the command was given
    "RAY_AIR_NEW_OUTPUT": "0",
    # a trial that fails by its settings has no score to tell
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
        report(f"on the Ray cluster at {address}: {tell_cluster(ray)}")
    try:
        yield ray
    finally:
        if not here:
            ray.shutdown()


def tell_cluster(ray: Any) -> str:
    """The nodes that are up and what each has, for people."""
    return "; ".join(
        f"{node['NodeManagerAddress']} {_tell(node['Resources'])}"
        for node in ray.nodes()
        if node["Alive"]
    )


def placement_fault(ray: Any, processes: list[dict[str, float]]) -> str:
    """Why ``processes``, each needing CPUs and GPUs of one node, have no room even on the idle
    cluster; else empty.
    """
    free = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for needs in sorted(processes, key=lambda one: (-one.get("GPU", 0), -one.get("CPU", 0))):
        node = next(
            (
                one
                for one in free
                if all(one.get(kind, 0) >= amount for kind, amount in needs.items())
            ),
            None,
        )
        if node is None:
            counts = Counter(map(_tell, processes))
            wanted = " and ".join(f"{count} × ({each})" for each, count in counts.items())
            return f"waits for room for {wanted}; the cluster has {tell_cluster(ray) or 'no node'}"
        for kind, amount in needs.items():
            node[kind] -= amount
    return ""


def wait_for_room(ray: Any, processes: list[dict[str, float]], wait_s: float, whose: str) -> None:
    """Wait until the cluster can hold ``processes`` at all, and say so. Raises `UserError` after
    ``wait_s`` seconds.
    """
    began, told = time.monotonic(), -math.inf
    while fault := placement_fault(ray, processes):
        waited = time.monotonic() - began
        if waited >= wait_s:
            raise UserError(
                f"{whose} {fault}; add machines, ask for fewer processes, or lower ray.cpus or "
                "ray.gpus (waited "
                f"{waited:.0f} s, ray.wait_s)"
            )
        if waited - told > _TOLD_EVERY_S:
            told = waited
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


def _tell(resources: dict[str, float]) -> str:
    parts = [f"{resources[kind]:g} {kind}" for kind in ("CPU", "GPU") if resources.get(kind)]
    return ", ".join(parts) or "no CPU"
