"""What to report when a collective does not end: which one, on which rank, and where the record of
the last ones lies.

PyTorch's flight recorder keeps the last collectives of every process. NCCL's own watchdog dumps it
and ends the process; with gloo the waiting call raises, and the record is written here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch._C import _distributed_c10d

_KEPT = "2000"  # collectives
_DUMP = "_dump_fr_trace_json"
_TIMED_OUT = ("Timed out waiting", "timed out", "Timeout")
_OTHERS_LEFT = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "aborted")


def arm_recorder(folder: Path) -> None:
    """Switch the flight recorder on; called before the process group is joined. ``folder`` gets
    NCCL's dumps.
    """
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _KEPT)
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(folder / "nccl-rank-"))


def explain(error: RuntimeError, rank: int, timeout_s: float, folder: Path) -> str | None:
    """One line about a collective that failed, or None if ``error`` is of another kind.

    ``folder`` gets this rank's record of its last collectives.
    """
    text = str(error)
    timed_out = any(sign in text for sign in _TIMED_OUT)
    if not timed_out and not any(sign in text for sign in _OTHERS_LEFT):
        return None
    entries = _recorded()
    # The one that never ended; a call that raised may count as ended, and is the last.
    unended = [entry for entry in entries if not entry.get("retired", True)]
    what = _describe([*entries, *unended][-1]) if entries else "a collective"
    if not timed_out:
        return (
            f"rank {rank}: another rank ended while this one was in {what}; that rank's own "
            "message says why"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"rank-{rank}.json"
        path.write_text(json.dumps(entries, indent=1), encoding="utf-8")
        where = f"this rank's last collectives are in {path}"
    except OSError as fault:
        where = f"this rank's last collectives could not be written ({fault.strerror})"
    return (
        f"rank {rank} waited in {what} longer than parallel.timeout_s={timeout_s:g}: another rank "
        f"hangs, is gone, or is that far behind; {where}, and the rank whose file is missing or "
        "ends earlier is the one to look at"
    )


def _recorded() -> list[dict[str, Any]]:
    try:
        trace = json.loads(
            getattr(_distributed_c10d, _DUMP)(includeCollectives=True, onlyActive=False)
        )
        entries: list[dict[str, Any]] = trace.get("entries", [])
    except (RuntimeError, ValueError, AttributeError):
        return []
    return entries


def _describe(entry: dict[str, Any]) -> str:
    name, group = entry["profiling_name"], entry["process_group"][-1]
    number, sizes = entry["collective_seq_id"], entry.get("input_sizes", [])
    return f"{name} of {sizes} (number {number} of group {group!r})"
