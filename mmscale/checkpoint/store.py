"""Checkpoints: PyTorch's distributed checkpointing, written as safetensors, committed by one rename.

    run.dir/checkpoints/step-00000500/   state.json + one safetensors file a rank

Nothing is pickled. Tensors are named ``model.<parameter>``, ``exp_avg.<parameter>``, ``ema.<parameter>`` and so on;
every rank writes its own shards and the reader reassembles them for any number of ranks and any strategy. Everything
else a run needs to go on is a few numbers in ``state.json``, because a batch is a function of the step; it also names
every file with its size and SHA-256.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from mmscale.checkpoint.file_digest import file_fault
from mmscale.checkpoint.save_writer import Files, ShardWriter
from mmscale.durable import make_folder, move_into_place, remove_folder, write_durably
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
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._stager = DefaultStager(StagingOptions(False, False, False, False))
        self.failure = ""  # why the newest save failed, or nothing

    def save(self, tensors: dict[str, Tensor], state: RunState) -> None:
        """Copy ``tensors``, by name, to host memory and start writing them; waits for an earlier save first.

        A save that fails is told on the screen and in `failure`; the checkpoints before it stay, and the run goes on.
        """
        self.wait()
        if not self._agree(self._make_folder):
            return
        # The stager keeps its buffers: memory that was used before is written to much faster than new memory.
        copies = self._stager.stage(tensors)
        assert isinstance(copies, dict)
        self._pending = self._thread.submit(self._write, copies, state)

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

    def _write(self, tensors: dict[str, Tensor], state: RunState) -> None:
        """Called on every rank, beside training."""
        final = self._folder / f"step-{state.step:08d}"
        hidden = final.with_name(f".{final.name}.partial")
        writer = ShardWriter(hidden, partial(self._commit, hidden, final, state))
        dcp.save(tensors, storage_writer=writer, process_group=self._group)

    def _commit(self, hidden: Path, final: Path, state: RunState, files: Files) -> None:
        """Called on the first rank when every rank's file lies in ``hidden``, flushed."""
        ordered = dict(sorted(files.items()))
        write_durably(hidden / _STATE, json.dumps({**asdict(state), "files": ordered}, indent=2))
        move_into_place(hidden, final)
        for old in superfluous(self._folder, self._keep):
            with contextlib.suppress(OSError):
                remove_folder(old)

    def newest(self) -> Path | None:
        """The newest checkpoint whose files are what its state says; called on every rank.

        What is passed over is told on the screen. Raises `UserError` if there are checkpoints, but no good one.
        """
        if dist.get_rank() == 0:
            self._clean()
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
            make_folder(self._folder)
            self._clean()
        except OSError as error:
            return f"cannot be written to ({error.strerror})"
        return ""

    def _clean(self) -> None:
        """Remove what killed runs left: folders that are no checkpoints yet, or no longer."""
        for leftover in [*self._folder.glob(".step-*.partial"), *self._folder.glob(".step-*.gone")]:
            shutil.rmtree(leftover, ignore_errors=True)

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
