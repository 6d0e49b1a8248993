"""Are the GPUs all there, alike, free and sound? By nvidia-smi, asked once per machine."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from mmscale.doctor.check import FAILED, OK, WARNING, HealthCheck, RankPlace, complain, usual

_PATIENCE_S = 30  # of a driver that hangs
_FACTS = ("name", "memory.total", "memory.free", "driver_version", "index", "uuid")
_HEALTH = (
    "ecc.errors.uncorrected.volatile.total",
    "clocks_throttle_reasons.hw_thermal_slowdown",
    "clocks_throttle_reasons.hw_power_brake_slowdown",
)


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """One device as the driver sees it."""

    name: str
    total: float  # bytes
    free: float  # bytes
    driver: str
    # Uncorrected, since the driver was loaded; 0 where the device does not count.
    ecc_errors: int
    slowed: str  # by heat, by the power supply, or empty
    # The machine's own, whatever CUDA_VISIBLE_DEVICES makes of it.
    number: str


def collect() -> dict[str, Any]:
    """``gpus``: the machine's, of them those that CUDA_VISIBLE_DEVICES names; none without
    nvidia-smi. ``fault``: why they cannot be asked. ``usable``: how many PyTorch sees, None if
    slices (MIG) are named, which are not listed."""
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = (
        None if variable is None else [name.strip() for name in variable.split(",") if name.strip()]
    )
    in_slices = any(name.startswith("MIG-") for name in wanted or ())
    usable = None if in_slices else torch.cuda.device_count()
    if shutil.which("nvidia-smi") is None:
        return {"gpus": [], "fault": None, "usable": usable}
    try:
        facts = _ask(_FACTS)
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stdout", None)
        text = output.decode() if isinstance(output, bytes) else output or str(error)
        return {
            "gpus": [],
            "fault": f"nvidia-smi fails: {' '.join(text.split())[:200]}",
            "usable": usable,
        }
    try:
        health = _ask(_HEALTH)
    except (OSError, subprocess.SubprocessError):
        health = []  # another generation of drivers calls it otherwise
    gpus, fault = [], None
    absent = [
        name for name in wanted or () if name != "-1" and not any(_is(name, row) for row in facts)
    ]
    if absent and not in_slices:
        fault = f"CUDA_VISIBLE_DEVICES names {absent[0]}, which nvidia-smi does not list"
    for number, row in enumerate(facts):
        if wanted is not None and not in_slices and not any(_is(name, row) for name in wanted):
            continue
        errors, hot, braked = health[number] if number < len(health) else ("", "", "")
        slowed = " and ".join(
            word
            for word, state in (("heat", hot), ("its power supply", braked))
            if state == "Active"
        )
        sizes = [
            float(size) * 2**20 if size.replace(".", "").isdecimal() else 0.0 for size in row[1:3]
        ]
        counted = int(errors) if errors.isdecimal() else 0
        gpus.append(
            GpuReading(
                name=row[0],
                total=sizes[0],
                free=sizes[1],
                driver=row[3],
                ecc_errors=counted,
                slowed=slowed,
                number=row[4],
            )
        )
    return {"gpus": [asdict(gpu) for gpu in gpus], "fault": fault, "usable": usable}


def _is(name: str, row: list[str]) -> bool:
    """Whether CUDA_VISIBLE_DEVICES means this GPU by ``name``: its number, or the beginning of its
    UUID.
    """
    return name == row[4] or (name.startswith("GPU-") and row[5].startswith(name))


def driver_of(collected: Mapping[str, Any]) -> str:
    """Version of the machine's GPU driver, or empty."""
    return collected["gpus"][0]["driver"] if collected["gpus"] else ""


def assess(collected: Mapping[RankPlace, Mapping[str, Any]]) -> HealthCheck:
    """``collected``: by one rank of each machine."""
    gpus = {
        place: [GpuReading(**fields) for fields in machine["gpus"]]
        for place, machine in collected.items()
    }
    if not any(gpus.values()) and not any(machine["fault"] for machine in collected.values()):
        return HealthCheck("gpus", OK, "none; training runs on CPUs")
    kinds = {
        place: f"{len(readings)} x {readings[0].name}" if readings else "none"
        for place, readings in gpus.items()
    }
    norm = usual(kinds)
    faults = {}
    for place, machine in collected.items():
        failures, warnings = [], []
        if machine["fault"]:
            failures.append(machine["fault"])
        elif kinds[place] != norm:
            failures.append(f"{kinds[place]}, the others {norm}")
        usable = machine["usable"]
        if usable is not None and usable < len(gpus[place]):
            failures.append(f"PyTorch sees {usable or 'none'} of its {len(gpus[place])} GPUs")
        for gpu in gpus[place]:
            number = gpu.number
            if gpu.name != gpus[place][0].name:
                failures.append(f"GPU {number} is a {gpu.name}")
            if gpu.ecc_errors:
                failures.append(f"GPU {number}: {gpu.ecc_errors} uncorrected memory errors")
            if gpu.slowed:
                warnings.append(f"GPU {number} is slowed by {gpu.slowed}")
            if gpu.free < 0.9 * gpu.total:
                taken = f"{(gpu.total - gpu.free) / 1e9:.1f} of {gpu.total / 1e9:.0f} GB"
                grave = gpu.free < 0.5 * gpu.total
                (failures if grave else warnings).append(f"GPU {number}: {taken} are taken")
        if failures or warnings:
            faults[place] = (FAILED if failures else WARNING, ", ".join(failures + warnings))
    if faults:
        return complain("gpus", faults, collected)
    memory = min(gpu.total for readings in gpus.values() for gpu in readings)
    return HealthCheck(
        "gpus", OK, f"{norm} in every machine, {memory / 1e9:.0f} GB each, free and sound"
    )


def _ask(fields: tuple[str, ...]) -> list[list[str]]:
    """One row per GPU."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=True)
    rows = [[cell.strip() for cell in row] for row in csv.reader(done.stdout.splitlines())]
    return [row for row in rows if len(row) == len(fields)]
