"""Checkpoints: PyTorch's distributed checkpointing, written as safetensors, committed by one rename.

    run.dir/checkpoints/step-00000500/   state.json + one safetensors file a rank

Nothing is pickled. Tensors are named ``model.<parameter>``, ``exp_avg.<parameter>``, ``ema.<parameter>`` and so on;
every rank writes its own shards and the reader reassembles them for any number of ranks and any strategy. Everything
else a run needs to go on is a few numbers in ``state.json``, because a batch is a function of the step; it also names
every file with its size and SHA-256.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future as TorchFuture

from mmscale.checkpoint.file_digest import file_digest, file_fault
from mmscale.errors import UserError

_NAME = re.compile(r"step-(\d{8})")
_STATE = "state.json"


@dataclass
class RunState:
    """What is saved beside the tensors. ``step`` counts finished steps."""

    step: int
    fingerprint: str  # of the data plan
    seen: int = 0  # samples seen
    bad: int = 0  # samples that could not be used
    skipped: int = 0  # steps that were not taken, because loss or gradient was not finite or spiked
    norm_mean: float = 0.0  # running mean of the gradient norm
    loss: float = 0.0  # mean of the last steps


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the ``last`` ones, those whose step ``every`` divides (0: none), the ``best`` one."""

    last: int
    every: int = 0
    best: bool = False


def superfluous(folder: Path, keep: Keep) -> list[Path]:
    """Checkpoints that need not stay. Damaged ones are left for a person to look at."""
    found = list_checkpoints(folder)
    kept = set(found[-keep.last :])
    states = {}
    for path in found:
        try:
            states[path] = read_state(path)
        except UserError:
            kept.add(path)
    if keep.every:
        kept |= {path for path, state in states.items() if state.step % keep.every == 0}
    if keep.best and states:
        kept.add(min(states, key=lambda path: (states[path].loss, -states[path].step)))
    return [path for path in found if path not in kept]


class _CommittingWriter(HuggingFaceStorageWriter):
    """Writes into a hidden folder; when all ranks have written, the first rank renames it into place."""

    def __init__(self, folder: Path, state: RunState, keep: Keep) -> None:
        self._final = folder
        self._hidden = folder.parent / f".{folder.name}.partial"
        self._state, self._keep = state, keep
        super().__init__(str(self._hidden), save_distributed=True)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> TorchFuture[list[WriteResult]]:
        """Called on every rank, beside training."""
        written = super().write_data(plan, planner)
        for name in sorted({result.storage_data.relative_path for result in written.wait()}):
            path = self._hidden / name
            fact = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            (self._hidden / f"{name}.json").write_text(json.dumps(fact), encoding="utf-8")
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Called on the first rank after every rank's `write_data` returned."""
        files = {}
        for path in sorted(self._hidden.glob("*.safetensors.json")):
            files[path.name.removesuffix(".json")] = json.loads(path.read_text(encoding="utf-8"))
            path.unlink()
        with open(self._hidden / _STATE, "w", encoding="utf-8") as file:
            json.dump({**asdict(self._state), "files": files}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self._hidden)
        if self._final.exists():
            shutil.rmtree(self._final)
        os.rename(self._hidden, self._final)
        _sync_folder(self._final.parent)
        for old in superfluous(self._final.parent, self._keep):
            shutil.rmtree(old, ignore_errors=True)


class CheckpointStore:
    """Saves and restores one run.

    Args:
        folder: ``run.dir/checkpoints``.
        keep: which checkpoints stay.
    """

    def __init__(self, folder: Path, keep: Keep) -> None:
        self._folder, self._keep = folder, keep
        # Saving runs beside training; its messages must not mix with the training's own collectives.
        self._group = dist.new_group(backend="gloo")
        self._pending: Future[Any] | None = None
        self.failure = ""  # why the newest save failed, or nothing

    def save(self, tensors: dict[str, Tensor], state: RunState) -> None:
        """Copy ``tensors``, by name, to host memory and start writing them; waits for an earlier save first.

        A save that fails is told on the screen and in `failure`; the checkpoints before it stay, and the run goes on.
        """
        self.wait()
        final = self._folder / f"step-{state.step:08d}"
        if not self._agree(self._make_folder):
            return
        writer = _CommittingWriter(final, state, self._keep)
        future = dcp.async_save(tensors, storage_writer=writer, process_group=self._group)
        assert isinstance(future, Future)
        self._pending = future

    def wait(self) -> None:
        """Return when nothing is being written."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
            self.failure = ""
        except (OSError, RuntimeError, ValueError, CheckpointException) as error:
            reason = " ".join(str(error).split())[-200:]  # torch gives the traceback of every rank
            self._tell_failure(f"could not be written (…{reason}; is the disk full?)")

    def newest(self) -> Path | None:
        """The newest checkpoint whose files are what its state says; called on every rank.

        What is passed over is told on the screen. Raises `UserError` if there are checkpoints, but no good one.
        """
        found = list_checkpoints(self._folder)[::-1]
        shared: list[list[Path]] = [found]
        dist.broadcast_object_list(shared, src=0, group=self._group)  # folders may be seen late
        for path in shared[0]:
            faults: list[str | None] = [None] * dist.get_world_size()
            dist.all_gather_object(faults, self._fault(path), group=self._group)
            fault = next((fault for fault in faults if fault), None)
            if fault is None:
                return path
            self._tell(f"warning: passed over {path}: {fault}")
        if shared[0]:
            raise UserError(
                f"{self._folder}: none of its {len(shared[0])} checkpoints is whole; remove the folder to begin anew"
            )
        return None

    def restore(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Load ``path`` into ``tensors`` in place, whatever number of ranks saved it."""
        load_tensors(path, tensors, self._group)

    def _fault(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, as far as this rank looked: each reads a share of the files."""
        try:
            return file_fault(path, stored_files(path), dist.get_rank(), dist.get_world_size())
        except UserError as error:
            return str(error).removeprefix(f"{path}: ")

    def _make_folder(self) -> str:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._folder.glob(".step-*.partial"):
                shutil.rmtree(leftover, ignore_errors=True)
        except OSError as error:
            return f"cannot be written to ({error.strerror})"
        return ""

    def _agree(self, act: Callable[[], str]) -> bool:
        """Let the first rank ``act``; every rank learns whether it returned no failure."""
        said = [act() if dist.get_rank() == 0 else ""]
        dist.broadcast_object_list(said, src=0, group=self._group)
        if said[0]:
            self._tell_failure(said[0])
        return not said[0]

    def _tell_failure(self, reason: str) -> None:
        self.failure = f"{self._folder}: {reason}"
        self._tell(f"warning: {self.failure}; the run goes on, and the checkpoints before stand")

    def _tell(self, line: str) -> None:
        if dist.get_rank() == 0:
            print(f"mmscale: {line}", file=sys.stderr)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [
        path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and (path / _STATE).is_file()
    ]
    return sorted(found)


def read_state(path: Path) -> RunState:
    """The plain part of a checkpoint. Raises `UserError` if it is damaged, or a tensor file has another size."""
    return _read(path)[0]


def stored_files(path: Path) -> dict[str, dict[str, Any]]:
    """``bytes`` and ``sha256`` of every tensor file, by name. Raises `UserError` as `read_state` does."""
    return _read(path)[1]


def _read(path: Path) -> tuple[RunState, dict[str, dict[str, Any]]]:
    try:
        raw = json.loads((path / _STATE).read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError(f"{_STATE} is no object")
        files = raw.pop("files", None)
        state = RunState(**raw)
        for name, fact in files.items():
            if "/" in name or (path / name).stat().st_size != fact["bytes"]:
                raise ValueError(f"{name} is not {fact['bytes']} bytes long")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged checkpoint ({error}); remove the folder to resume from an older one"
        ) from None
    return state, files


def load_tensors(path: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Fill ``tensors`` in place. Raises `UserError` if the checkpoint holds other names or shapes."""
    reader = HuggingFaceStorageReader(str(path))
    try:
        saved: dict[str, Any] = reader.read_metadata().state_dict_metadata
        for name, tensor in tensors.items():
            if name not in saved:
                raise ValueError(f"{name} is missing")
            if tuple(saved[name].size) != tuple(tensor.shape):
                raise ValueError(
                    f"{name} has shape {list(saved[name].size)}, the model needs {list(tensor.shape)}"
                )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as asked for
            dcp.load(tensors, storage_reader=reader, process_group=group, no_dist=group is None)
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{path}: does not fit this model ({error}); was model.* changed since it was saved?"
        ) from None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
