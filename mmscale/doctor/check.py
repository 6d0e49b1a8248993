"""What a check reports, and of which machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

OK, WARNING, FAILED = "ok", "warning", "failed"
_ORDER = (OK, WARNING, FAILED)


@dataclass(frozen=True, order=True)
class RankPlace:
    """A rank and the name of its machine."""

    rank: int
    machine: str


@dataclass(frozen=True)
class HealthCheck:
    """One verdict: ``ok``, ``warning`` or ``failed``; the reason, in a line; the machines that are
    to blame.
    """

    name: str
    verdict: str
    text: str
    machines: tuple[str, ...] = ()


def worst(verdicts: Iterable[str]) -> str:
    """The gravest of some verdicts; ok of none."""
    return max(verdicts, key=_ORDER.index, default=OK)


def complain(
    name: str, faults: Mapping[RankPlace, tuple[str, str]], everywhere: Iterable[RankPlace]
) -> HealthCheck:
    """A check that found faults: (verdict, text) by place. What several ranks of a machine report
    alike is reported once.
    """
    ranks = Counter(place.machine for place in everywhere)
    reported = Counter((place.machine, text) for place, (_, text) in faults.items())
    lines = [
        f"{machine}: {text}"
        + (f" ({count} of its {ranks[machine]} ranks)" if count < ranks[machine] else "")
        for (machine, text), count in reported.items()
    ]
    machines = dict.fromkeys(place.machine for place in sorted(faults))
    return HealthCheck(
        name, worst(verdict for verdict, _ in faults.values()), "; ".join(lines), tuple(machines)
    )


def usual(values: Mapping[RankPlace, Any]) -> Any:
    """The most frequent value; of values that are equally frequent, that of the lowest rank."""
    counts = Counter(values.values())
    most = max(counts.values())
    return next(values[place] for place in sorted(values) if counts[values[place]] == most)
