"""Is an all-reduce as fast as the hardware should make it, and if not, which machine holds it up?

Rates are bus bandwidths as NCCL's own tests define them: bytes / time * 2 (n - 1) / n for n ranks,
which a ring that uses its links fully reaches whatever n is (github.com/NVIDIA/nccl-tests,
doc/PERFORMANCE.md).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from mmscale.doctor.check import FAILED, OK, WARNING, HealthCheck
from mmscale.gpu import gpu_family

_BYTES = {"cuda": 256 << 20, "cpu": 4 << 20}
_ROUNDS = 5
# Of the rated speed of the slowest link on the way. A sound NVLink machine reaches 0.7 to 0.9; one
# that fell back to PCIe or to TCP sockets less than a tenth.
_GOOD, _POOR = 0.5, 0.2
_PCIE = 25e9  # bytes/s one way: 16 lanes of the fourth generation, less what the protocol takes


def measure_rates(machines: list[list[int]], device: torch.device) -> dict[str, float]:
    """Bus bandwidth in bytes/s: of ``all`` ranks, and ``inside`` this one's machine (0 for a single
    rank).

    Called on every rank, with the ranks of every machine.
    """
    rates = {"all": _rate(None, device), "inside": 0.0}
    if len(machines) > 1 and max(map(len, machines)) > 1:
        rates["inside"] = _in_groups(machines, device)
    elif len(machines) == 1:
        rates["inside"] = rates["all"]
    return rates


def measure_pairs(machines: list[list[int]], device: torch.device) -> float:
    """The better of two rates of this machine, each with another neighbour: a machine that is slow
    with both is slow.

    Called on every rank when all together are slow. The rounds do not overlap.
    """
    count, rates = len(machines), [0.0]
    # Pairs of neighbours in a ring. Where the number is odd, the last with the first is a round of
    # its own.
    ring = [(at, (at + 1) % count) for at in range(count)]
    for pairs in (ring[0 : count - 1 : 2], ring[1:count:2], ring[-1:] if count % 2 else []):
        rates.append(_in_groups([machines[a] + machines[b] for a, b in pairs], device))
    return max(rates)


def expected(name: str, machines: int, per_machine: int) -> float | None:
    """Rated bus bandwidth of ``machines`` with so many GPUs of a kind (the driver's name of it)
    each; bytes/s.

    None for kinds without a data sheet here (`mmscale.gpu`), and for single ranks.
    """
    kind = gpu_family(name)
    if kind is None or machines * per_machine == 1:
        return None
    link = _PCIE if "PCIE" in name.upper() else kind.link
    return min(
        link if per_machine > 1 else float("inf"),
        kind.network * per_machine if machines > 1 else float("inf"),
    )


def assess(rates: Mapping[str, Mapping[str, float]], gpu: str, per_machine: int) -> HealthCheck:
    """``rates`` by name of a machine: ``all``, ``inside`` and, if it was measured, ``pairs``;
    ``gpu``: their kind, empty for CPUs."""
    measured = next(iter(rates.values()))["all"]
    if not gpu:
        return HealthCheck(
            "all-reduce",
            OK,
            f"{measured / 1e9:.2f} GB/s by Gloo; what CPUs should give is not known",
        )
    rated, inside = expected(gpu, len(rates), per_machine), expected(gpu, 1, per_machine)
    if rated is None:
        return HealthCheck(
            "all-reduce", OK, f"{measured / 1e9:.1f} GB/s; what a {gpu} should give is not known"
        )
    lines = [f"{measured / 1e9:.1f} GB/s of {rated / 1e9:.0f} rated"]
    sick, verdicts = [], [_grade(measured, rated)]
    for machine, rate in rates.items():
        for key, limit, where in (
            ("inside", inside, "inside"),
            ("pairs", rated, "with either neighbour"),
        ):
            if not limit or not rate.get(key):
                continue
            verdict = _grade(rate[key], limit)
            if verdict != OK and not (key == "inside" and len(rates) == 1):
                lines.append(f"{machine}: {rate[key] / 1e9:.1f} GB/s of {limit / 1e9:.0f} {where}")
            if verdict != OK:
                sick.append(machine)
                verdicts.append(verdict)
    verdict = max(verdicts, key=(OK, WARNING, FAILED).index)
    return HealthCheck("all-reduce", verdict, "; ".join(lines), tuple(dict.fromkeys(sick)))


def is_slow(rate: float, gpu: str, machines: int, per_machine: int) -> bool:
    """Whether all ranks together are slower than they should be, so that machines are to be looked
    at in pairs.
    """
    rated = expected(gpu, machines, per_machine) if gpu else None
    return rated is not None and machines > 2 and _grade(rate, rated) != OK


def _grade(rate: float, rated: float) -> str:
    return OK if rate >= _GOOD * rated else WARNING if rate >= _POOR * rated else FAILED


def _in_groups(groups: list[list[int]], device: torch.device) -> float:
    """This rank's rate in its group, 0 if it is in none. Every rank takes part in making every
    group.
    """
    mine = None
    for ranks in groups:
        made = dist.new_group(ranks)
        mine = made if dist.get_rank() in ranks else mine
    if mine is None or dist.get_world_size(mine) == 1:
        return 0.0
    rate = _rate(mine, device)
    dist.destroy_process_group(mine)
    return rate


def _rate(group: Any, device: torch.device) -> float:
    count = dist.get_world_size(group)
    if count == 1:
        return 0.0
    size = _BYTES[device.type]
    data = torch.zeros(size // 4, device=device)
    dist.all_reduce(data, group=group)  # connects
    times = []
    for _ in range(_ROUNDS):
        dist.all_reduce(data[:1], group=group)  # all begin together
        _finish(device)
        began = time.perf_counter()
        dist.all_reduce(data, group=group)
        _finish(device)
        times.append(time.perf_counter() - began)
    return size / sorted(times)[_ROUNDS // 2] * 2 * (count - 1) / count


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
