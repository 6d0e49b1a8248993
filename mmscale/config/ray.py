"""Where Ray runs, and what its workers are given."""

from __future__ import annotations

from dataclasses import dataclass

from mmscale.config.keys import key
from mmscale.errors import UserError


@dataclass(kw_only=True)
class RayConfig:
    address: str = key(
        "",
        "Ray cluster; empty: $RAY_ADDRESS, which `ray job submit` sets, else Ray is started here.",
    )
    cpus: float = key(1.0, "CPUs of one process.", low=0.001)
    gpus: float = key(-1.0, "GPUs of one process; -1: one where the cluster has any.", low=-1.0)
    max_failures: int = key(
        3, "How often a process is started again after a lost process or machine.", low=0
    )
    wait_s: float = key(
        600.0,
        "Longest wait for free resources on the cluster, seconds. The wait is reported.",
        low=0.0,
    )
    usage_stats: bool = key(False, "Let Ray send usage statistics to its makers.")


def check_ray(config: RayConfig) -> None:
    """Raise `UserError` for values that mean nothing."""
    if config.gpus < 0 and config.gpus != -1:
        raise UserError(f"ray.gpus: {config.gpus:g} is below 0; use -1 for one where there are any")
