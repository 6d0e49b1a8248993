"""The model card's estimate of what training emitted: time x power x carbon intensity (Lacoste et
al., 2019).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmscale.config import RunConfig

_WATTS = {"cuda": 700.0, "cpu": 60.0}  # the rated power of an H100; a share of a server's processor

_MOST = 1e12  # seconds or ranks


@dataclass(frozen=True, kw_only=True)
class Emissions:
    """The estimate and the numbers it rests on, as the card shows them."""

    amount: str  # of CO₂, such as "1.6 kg"
    rank_hours: str
    watts: str  # per rank
    whence: str  # where the watts come from
    kwh: str
    grams_per_kwh: str


def estimate_emissions(run_dir: Path, step: int, run: RunConfig) -> Emissions | None:
    """Of the steps before ``step``; None where the run did not record what is needed."""
    rows = _rows(run_dir / "metrics.jsonl", step)
    if not rows:
        return None
    # Lines may be fewer than steps (train.log_every); each stands for the steps around it.
    share = step / len(rows)
    rank_hours = share * sum(row["step_s"] * row["ranks"] for row in rows) / 3600.0
    device = str(rows[-1]["device"])
    watts = run.watts or _WATTS.get(device, _WATTS["cuda"])
    kwh = rank_hours * watts / 1000.0
    return Emissions(
        amount=_grams(kwh * run.co2_g_per_kwh),
        rank_hours=f"{rank_hours:.3g}",
        watts=f"{watts:g}",
        whence="as set in `run.watts`" if run.watts else f"assumed for a {device} rank",
        kwh=f"{kwh:.3g}",
        grams_per_kwh=f"{run.co2_g_per_kwh:g}",
    )


def _rows(path: Path, step: int) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # a line cut short by a crash, or damaged
        if isinstance(row, dict) and _plain(row) and row["step"] < step:
            rows.append(row)
    return rows


def _plain(row: dict[str, Any]) -> bool:
    """Whether the fields that are used are numbers that can be."""
    return (
        type(row.get("step")) is int
        and type(row.get("step_s")) in (int, float)
        and type(row.get("ranks")) is int
        and 0 <= row["step_s"] < _MOST
        and 0 < row["ranks"] < _MOST
        and isinstance(row.get("device"), str)
    )


def _grams(grams: float) -> str:
    return f"{grams / 1000.0:.3g} kg" if grams >= 1000.0 else f"{grams:.3g} g"
