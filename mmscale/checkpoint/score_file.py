"""``scores.json`` of a run: what evaluation found, on which data, and the command that finds it
again.

{"format": "mmscale-scores", "version": 1, "step": 400,
 "entries": {name: {"scores": {…}, "shards": […], "digests": […], "command": "mmscale eval …"}}}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmscale.durable import write_durably
from mmscale.errors import UserError

NAME = "scores.json"
_FORMAT = {"format": "mmscale-scores", "version": 1}


def read_scores(run_dir: Path, step: int) -> dict[str, dict[str, Any]]:
    """Entries by name that were computed at ``step``; none if there is no file, or it is of another
    step.

    Raises:
        UserError: the file is damaged.
    """
    path = run_dir / NAME
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); remove it and run mmscale eval again"
        ) from None
    entries = tree.get("entries") if isinstance(tree, dict) else None
    if not isinstance(entries, dict) or any(
        tree.get(name) != value for name, value in _FORMAT.items()
    ):
        raise UserError(
            f"{path}: not a score file of this version; remove it and run mmscale eval again"
        )
    for name, entry in entries.items():
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("scores"), dict)
            or not isinstance(entry.get("digests"), list)
            or not all(isinstance(digest, str) for digest in entry["digests"])
            or not isinstance(entry.get("command"), str)
        ):
            raise UserError(
                f"{path}: damaged (entry {name[:60]!r}); remove it and run mmscale eval again"
            )
    return entries if tree.get("step") == step else {}


def write_scores(run_dir: Path, step: int, entries: dict[str, dict[str, Any]]) -> None:
    """Add ``entries`` to those of the same step; entries of another step are dropped."""
    path = run_dir / NAME
    tree = {**_FORMAT, "step": step, "entries": {**read_scores(run_dir, step), **entries}}
    try:
        write_durably(path, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or fix its permissions"
        ) from None
