"""Are the programs the same everywhere?"""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch

from mmscale.doctor.check import FAILED, OK, WARNING, HealthCheck, RankPlace, complain, usual
from mmscale.version import __version__

# Kernels of one driver branch work together; all else must be the same bytes.
_MAY_DIFFER = ("driver",)


def look(driver: str) -> dict[str, str]:
    """Name and version of what a rank runs; ``driver`` is the GPU driver's, empty if not known."""
    found = {
        "mmscale": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "",
        "driver": driver,
    }
    return {name: version for name, version in found.items() if version}


def judge(found: Mapping[RankPlace, Mapping[str, str]]) -> HealthCheck:
    """Different versions fail, different drivers warn; the minority is named."""
    faults: dict[RankPlace, tuple[str, str]] = {}
    norms: dict[str, str] = {}
    for name in dict.fromkeys(name for versions in found.values() for name in versions):
        # The driver is asked for once a machine.
        told = {place: versions.get(name, "") for place, versions in found.items()}
        if name in _MAY_DIFFER:
            told = {place: version for place, version in told.items() if version}
        norms[name] = usual(told)
        for place, version in told.items():
            if version != norms[name]:
                verdict = WARNING if name in _MAY_DIFFER else FAILED
                before, said = faults.get(place, (OK, ""))
                line = f"{name} {version or 'none'}, the others {norms[name] or 'none'}"
                faults[place] = (
                    max(before, verdict, key=(OK, WARNING, FAILED).index),
                    f"{said}, {line}".strip(", "),
                )
    if faults:
        return complain("versions", faults, found)
    return HealthCheck(
        "versions", OK, ", ".join(f"{name} {version}" for name, version in norms.items())
    )
