"""What stands beside a checkpoint's tensors, where checkpoints lie, and which of them stay."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmscale.checkpoint.file_digest import file_fault
from mmscale.errors import UserError

STATE = "state.json"  # written last: with it a folder is a checkpoint
MAX_STATE_BYTES = 16 << 20  # a file takes 150 bytes
_NAME = re.compile(r"step-(\d{8})")

_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}

# ``bytes`` and ``sha256`` of tensor files, by name.
Files = dict[str, dict[str, Any]]


@dataclass(kw_only=True)
class RunState:
    """What is saved beside the tensors. ``step`` counts finished steps."""

    step: int
    fingerprint: str  # of the data plan
    seen: int = 0  # samples seen
    bad: int = 0  # samples that could not be used
    skipped: int = 0  # steps that were not taken, because loss or gradient was not finite or spiked
    norm_mean: float = 0.0  # running mean of the gradient norm
    loss: float = 0.0  # mean of the last steps that were taken; infinite if none was


@dataclass(frozen=True)
class RetentionPolicy:
    """Which checkpoints stay: the ``last`` ones, those whose step ``every`` divides (0: none), the
    ``best`` one.
    """

    last: int
    every: int = 0
    best: bool = False


def superfluous(
    states: Mapping[int, RunState | None], keep: RetentionPolicy, saved: int, before: int = 0
) -> list[int]:
    """Steps of the checkpoints that need not stay when the one of step ``saved`` is there, which
    always does.

    ``before`` is the one that the run had or resumed from until then (0: none; ``saved`` itself:
    nothing is new). What else is later belongs to a line that was given up: the start passed over
    it, because it does not verify, which is not seen here. So it takes no other's place, and is
    removed with the first save of the new line. Damaged ones (None) are left for a person to look
    at.
    """
    whole = {step: state for step, state in states.items() if state is not None}
    line = {step: state for step, state in whole.items() if step <= before or step == saved}
    kept = set(sorted(line)[-keep.last :]) | (states.keys() - whole.keys())
    if saved == before:
        kept |= whole.keys() - line.keys()
    if keep.every:
        kept |= {step for step in line if step % keep.every == 0}
    best = {step: state.loss for step, state in line.items() if math.isfinite(state.loss)}
    if keep.best and best:
        kept.add(min(best, key=lambda step: (best[step], -step)))
    return [step for step in sorted(states) if step not in kept]


def checkpoint_name(step: int) -> str:
    """Name of the folder."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder; None: it is called otherwise."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    checkpoints = [
        path
        for path in folder.glob("step-*")
        if _NAME.fullmatch(path.name) and (path / STATE).is_file()
    ]
    return sorted(checkpoints)


def encode_state(state: RunState, files: Files) -> str:
    """The text of ``state.json``."""
    return json.dumps({**asdict(state), "files": dict(sorted(files.items()))}, indent=2)


def decode_state(text: str) -> tuple[RunState, Files]:
    """What ``state.json`` says. Raises `ValueError` with the reason if it is damaged."""
    try:
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError(f"{STATE} is no object")
        files = raw.pop("files", None)
        state = RunState(**raw)
        for field in fields(RunState):
            if type(getattr(state, field.name)) not in _TYPES[str(field.type)]:
                raise ValueError(f"{field.name} is no {field.type}")
        if not isinstance(files, dict) or not files:
            raise ValueError("it lists no files")
        for name, fact in files.items():
            if "/" in name or name.startswith("."):
                raise ValueError(f"{name[:60]!r} is no name of a tensor file")
            if type(fact["bytes"]) is not int or not isinstance(fact["sha256"], str):
                raise ValueError(f"{name[:60]!r} has no size and SHA-256")
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return state, files


def read_state(path: Path) -> RunState:
    """The plain part of a checkpoint. Raises `UserError` if it is damaged, or a tensor file has
    another size.
    """
    return _read(path)[0]


def stored_files(path: Path) -> Files:
    """``bytes`` and ``sha256`` of every tensor file, by name. Raises `UserError` as `read_state`
    does.
    """
    return _read(path)[1]


def checkpoint_fault(path: Path, rank: int = 0, world: int = 1) -> str | None:
    """What is wrong with a checkpoint, or None. Every file is hashed; of several ranks each reads
    its share.
    """
    try:
        return file_fault(path, stored_files(path), rank, world)
    except UserError as error:
        return str(error).removeprefix(f"{path}: ")


def _read(path: Path) -> tuple[RunState, Files]:
    try:
        state, files = decode_state((path / STATE).read_text(encoding="utf-8"))
        for name, fact in files.items():
            if (path / name).stat().st_size != fact["bytes"]:
                raise ValueError(f"{name} is not {fact['bytes']} bytes long")
        unknown = sorted({file.name for file in path.glob("*.safetensors")} - files.keys())
        if unknown:
            raise ValueError(f"{unknown[0]} is not listed in {STATE}")
    except (OSError, ValueError) as error:
        if not (path / STATE).exists():
            raise UserError(
                f"{path}: no checkpoint ({STATE} is missing); those of a run are in its folder "
                "checkpoints"
            ) from None
        raise UserError(
            f"{path}: damaged checkpoint ({error}); remove the folder to resume from an older one"
        ) from None
    return state, files
