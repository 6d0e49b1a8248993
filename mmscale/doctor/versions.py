"""Are the programs the same everywhere?"""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch

from mmscale.doctor.check import FAILED, OK, WARNING, HealthCheck, RankPlace, complain, usual
from mmscale.version import __version__

# Kernels of one driver branch work together; all else must be the same bytes.
_MAY_DIFFER = ("driver",)


def collect(driver: str) -> dict[str, str]:
    """Name and version of what a rank runs; ``driver`` is the GPU driver's, empty if not known."""
    known = {
        "mmscale": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "",
        "driver": driver,
    }
    return {name: version for name, version in known.items() if version}


def assess(collected: Mapping[RankPlace, Mapping[str, str]]) -> HealthCheck:
    """Different versions fail, different drivers warn; the minority is named."""
    faults: dict[RankPlace, tuple[str, str]] = {}
    norms: dict[str, str] = {}
    for name in dict.fromkeys(name for versions in collected.values() for name in versions):
        # The driver is asked for once per machine.
        by_place = {place: versions.get(name, "") for place, versions in collected.items()}
        if name in _MAY_DIFFER:
            by_place = {place: version for place, version in by_place.items() if version}
        norms[name] = usual(by_place)
        for place, version in by_place.items():
            if version != norms[name]:
                verdict = WARNING if name in _MAY_DIFFER else FAILED
                before, lines = faults.get(place, (OK, ""))
                line = f"{name} {version or 'none'}, the others {norms[name] or 'none'}"
                faults[place] = (
                    max(before, verdict, key=(OK, WARNING, FAILED).index),
                    f"{lines}, {line}".strip(", "),
                )
    if faults:
        return complain("versions", faults, collected)
    return HealthCheck(
        "versions", OK, ", ".join(f"{name} {version}" for name, version in norms.items())
    )
