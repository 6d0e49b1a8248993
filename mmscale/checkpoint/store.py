"""Checkpoints: PyTorch's distributed checkpointing, written as safetensors, committed by one rename.

    run.dir/checkpoints/step-00000500/   state.json + one safetensors file a rank

Nothing is pickled. Tensors are named ``model.<parameter>``, ``exp_avg.<parameter>``, ``ema.<parameter>`` and so on;
every rank writes its own shards and the reader reassembles them for any number of ranks. Everything else a run needs
to go on is a few integers in ``state.json``, because a batch is a function of the step.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
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
from torch.distributed.checkpoint.storage import WriteResult

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


class _CommittingWriter(HuggingFaceStorageWriter):
    """Writes into a hidden folder; when all ranks have written, the first rank renames it into place."""

    def __init__(self, folder: Path, state: RunState, keep: int) -> None:
        self._final = folder
        self._hidden = folder.parent / f".{folder.name}.partial"
        self._state, self._keep = state, keep
        super().__init__(str(self._hidden), save_distributed=True)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Called on the first rank after every rank's `write_data` returned."""
        files = {path.name: path.stat().st_size for path in sorted(self._hidden.glob("*.safetensors"))}
        with open(self._hidden / _STATE, "w", encoding="utf-8") as file:
            json.dump({**asdict(self._state), "files": files}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self._hidden)
        if self._final.exists():
            shutil.rmtree(self._final)
        os.rename(self._hidden, self._final)
        _sync_folder(self._final.parent)
        for old in list_checkpoints(self._final.parent)[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)


class CheckpointStore:
    """Saves and restores one run.

    Args:
        folder: ``run.dir/checkpoints``.
        keep: how many checkpoints stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        # Saving runs beside training; its messages must not mix with the training's own collectives.
        self._group = dist.new_group(backend="gloo")
        self._pending: Future[Any] | None = None

    def save(self, tensors: dict[str, Tensor], state: RunState) -> None:
        """Copy ``tensors``, by name, to host memory and start writing them; waits for an earlier save first."""
        self.wait()
        final = self._folder / f"step-{state.step:08d}"
        if dist.get_rank() == 0:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{self._folder}: cannot be created ({error.strerror}); free the path"
                ) from None
            for leftover in self._folder.glob(".step-*.partial"):
                shutil.rmtree(leftover, ignore_errors=True)
        dist.barrier(group=self._group)
        writer = _CommittingWriter(final, state, self._keep)
        future = dcp.async_save(tensors, storage_writer=writer, process_group=self._group)
        assert isinstance(future, Future)
        self._pending = future

    def wait(self) -> None:
        """Return when nothing is being written. Raises `UserError` if the write failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except (OSError, CheckpointException) as error:
            reason = " ".join(str(error).split())[-200:]  # torch gives the traceback of every rank
            raise UserError(f"{self._folder}: could not be written (…{reason}); is the disk full?") from None

    def newest(self) -> Path | None:
        """The newest complete checkpoint; incomplete ones carry a hidden name and are never found."""
        found = list_checkpoints(self._folder)
        return found[-1] if found else None

    def restore(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Load ``path`` into ``tensors`` in place, whatever number of ranks saved it."""
        load_tensors(path, tensors, self._group)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [
        path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and (path / _STATE).is_file()
    ]
    return sorted(found)


def read_state(path: Path) -> RunState:
    """The plain part of a checkpoint. Raises `UserError` if it or a tensor file is damaged."""
    try:
        raw = json.loads((path / _STATE).read_text(encoding="utf-8"))
        files = raw.pop("files")
        state = RunState(**raw)
        for name, size in files.items():
            if "/" in name or (path / name).stat().st_size != size:
                raise ValueError(f"{name} is not {size} bytes long")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: damaged checkpoint ({error}); remove the folder to resume from an older one"
        ) from None
    return state


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
