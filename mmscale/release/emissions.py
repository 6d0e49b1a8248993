"""The model card's estimate of what training emitted: time x power x carbon intensity (Lacoste et
al., 2019).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmscale.config import RunConfig

_WATTS = {"cuda": 700.0, "cpu": 60.0}  # the rated power of an H100; a share of a server's processor

_MOST = 1e12  # seconds or ranks


def emissions_section(run_dir: Path, step: int, run: RunConfig) -> str:
    """Markdown; says so where the run did not record what is needed."""
    title = "## Emissions\n\n"
    rows = _rows(run_dir / "metrics.jsonl", step)
    if not rows:
        return title + "Not known: the run's metrics.jsonl does not tell its time and ranks.\n"
    # Lines may be fewer than steps (train.log_every); each stands for the steps around it.
    share = step / len(rows)
    rank_hours = share * sum(row["step_s"] * row["ranks"] for row in rows) / 3600.0
    device = str(rows[-1]["device"])
    watts = run.watts or _WATTS.get(device, _WATTS["cuda"])
    whence = "as told in `run.watts`" if run.watts else f"assumed for a {device} rank"
    kwh = rank_hours * watts / 1000.0
    return (
        f"{title}About {_grams(kwh * run.co2_g_per_kwh)} CO₂: {rank_hours:.3g} rank-hours of "
        "training steps x "
        f"{watts:g} W ({whence}) = {kwh:.3g} kWh, at {run.co2_g_per_kwh:g} g a kWh "
        "(`run.co2_g_per_kwh`). An estimate; "
        "power was not measured, and data preparation, evaluation and earlier attempts are not in "
        "it.\n"
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
