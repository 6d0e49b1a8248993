"""Checkpoints: PyTorch's distributed checkpointing, written as safetensors, committed by one
rename.

    run.dir/checkpoints/step-00000500/   state.json + one safetensors file per rank

Nothing is pickled. Tensors are named ``model.<parameter>``, ``exp_avg.<parameter>``,
``ema.<parameter>`` and so on. Every rank writes its own shards, and the reader reassembles them for
any number of ranks and any strategy. Everything else a run needs to resume is a few numbers in
``state.json``, because a batch is a function of the step. It also names every file with its size
and SHA-256.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.api import CheckpointException

from mmscale.checkpoint.host_copy import HostCopy
from mmscale.checkpoint.remote_copy import RemoteCopy
from mmscale.checkpoint.run_state import (
    STATE,
    Files,
    RetentionPolicy,
    RunState,
    checkpoint_fault,
    checkpoint_name,
    encode_state,
    list_checkpoints,
    read_state,
    step_of,
    stored_files,
    superfluous,
)
from mmscale.checkpoint.save_writer import CachedSavePlanner, CheckpointWriter
from mmscale.data.storage.remote_file import RemoteFault
from mmscale.durable import make_folder, move_into_place, remove_folder, write_durably
from mmscale.errors import UserError
from mmscale.messages import report

# A large checkpoint takes its time through a network; a rank that hangs is noticed by training
# itself.
_PATIENCE = timedelta(hours=12)
_numbers = count()  # of this process's stores


class CheckpointStore:
    """Saves and restores one run.

    Args:
        folder: ``run.dir/checkpoints``.
        keep: which checkpoints stay.
        copy_to: URL in an object store where copies of them are kept (`RemoteCopy`), or nothing.

    Raises:
        UserError: ``copy_to`` cannot be used.
    """

    def __init__(self, folder: Path, keep: RetentionPolicy, copy_to: str = "") -> None:
        self._folder, self._keep = folder, keep
        self._remote = RemoteCopy(copy_to) if copy_to else None
        # Saving runs beside training; its messages must not mix with the training's own
        # collectives.
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE if copy_to else None)
        self._ranks = dist.get_world_size()
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._uncopied: Path | None = None
        # Newest step of the run's line in the folder, and among the copies.
        self._before = self._copied_before = 0
        self._copy_of = HostCopy()
        self._plan = f"plan {next(_numbers)}"
        self.failure = ""  # why the newest save failed and what to do, or nothing

    def save(self, tensors: dict[str, Tensor], state: RunState) -> None:
        """Copy ``tensors``, by name, to host memory and start writing them; waits for an earlier
        save first.

        A save that fails is reported on the screen and in `failure`. The checkpoints before it
        stay, and the run continues.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, self._copy_of.take(tensors), state)

    def wait(self) -> None:
        """Return when nothing is being written."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
            self.failure = ""
        except RemoteFault as fault:
            assert self._remote is not None
            self._report(
                f"warning: {self._remote.url}: not copied ({fault}); the run continues, and "
                f"saves in {self._folder}"
            )
            self.failure = (
                f"{self._remote.url}: the newest checkpoint could not be copied ({fault}); it lies "
                f"in {self._folder}: mend the way there and start again, which copies it"
            )
        except OSError as error:  # of the folder; torch wraps what comes later
            self._report_failure(f"cannot be written to ({error})")
        except (RuntimeError, ValueError, CheckpointException) as error:
            self._report_failure(
                f"could not be written ({_last_exception(str(error))}; is the disk full?)"
            )

    def _write(self, tensors: dict[str, Tensor], state: RunState) -> None:
        """Called on every rank, beside training."""
        final = self._folder / checkpoint_name(state.step)
        hidden = final.with_name(f".{final.name}.partial")
        shared_fault = [_fault_of(self._make_folder) if dist.get_rank() == 0 else ""]
        dist.broadcast_object_list(shared_fault, src=0, group=self._group)
        if shared_fault[0]:
            raise OSError(shared_fault[0])
        writer = CheckpointWriter(hidden, self._ranks, partial(self._commit, hidden, final, state))
        dcp.save(
            tensors,
            storage_writer=writer,
            planner=CachedSavePlanner(self._plan),
            process_group=self._group,
        )
        if self._remote is not None:
            self._copy(final)

    def _commit(self, hidden: Path, final: Path, state: RunState, files: Files) -> None:
        """Called on the first rank when every rank's file lies in ``hidden``, flushed."""
        write_durably(hidden / STATE, encode_state(state, files))
        move_into_place(hidden, final)
        states: dict[int, RunState | None] = {}
        for path in list_checkpoints(self._folder):
            try:
                states[_step(path)] = read_state(path)
            except UserError:
                states[_step(path)] = None
        for step in superfluous(states, self._keep, state.step, self._before):
            with contextlib.suppress(OSError):
                remove_folder(self._folder / checkpoint_name(step))
        self._before = state.step

    def _copy(self, path: Path) -> None:
        """Copy a checkpoint, each rank a share of its files. Raises `RemoteFault` on every rank if
        one failed.
        """
        remote, rank, world = self._remote, dist.get_rank(), dist.get_world_size()
        assert remote is not None
        kept = self._folder.parent, self._keep, self._copied_before
        steps: list[Callable[[], None]] = [
            (lambda: remote.begin(path)) if rank == 0 else _nothing,
            lambda: remote.put(path, sorted(stored_files(path))[rank::world]),
            (lambda: remote.commit(path, *kept)) if rank == 0 else _nothing,
        ]
        for act in steps:
            faults = [""] * world
            dist.all_gather_object(faults, _fault_of(act), group=self._group)
            if any(faults):
                raise RemoteFault(next(fault for fault in faults if fault))
        self._copied_before = _step(path)

    def newest(self) -> Path | None:
        """The newest checkpoint whose files are what its state says; called on every rank.

        One that only the copies have, or have whole, is fetched; one that they have not is copied.
        What is passed over is reported on the screen. Raises `UserError` if there are checkpoints,
        but no good one.
        """
        if dist.get_rank() == 0:
            self._clean()
        present, copied = self._everywhere()
        for step in sorted({*present, *copied}, reverse=True):
            path = self._folder / checkpoint_name(step)
            if step in present:
                faults: list[str | None] = [None] * dist.get_world_size()
                dist.all_gather_object(faults, self._fault(path), group=self._group)
                fault = next((fault for fault in faults if fault), None)
                if fault is None:
                    self._uncopied = (
                        path if self._remote is not None and step not in copied else None
                    )
                    self._before = self._copied_before = step
                    return path
                self._report(f"warning: passed over {path}: {fault}")
            if step in copied and self._fetched(step, path):
                self._before = self._copied_before = step
                return path
        if present or copied:
            raise UserError(
                f"{self._folder}: none of its {len({*present, *copied})} checkpoints is whole; "
                "remove the folder to start again"
            )
        return None

    def _everywhere(self) -> tuple[list[int], list[int]]:
        """Steps of the checkpoints in the folder, and of the copies, as the first rank sees
        them.
        """
        present = [_step(path) for path in list_checkpoints(self._folder)]
        shared: list[Any] = [(present, [], "")]
        if self._remote is not None and dist.get_rank() == 0:
            try:
                shared = [(present, self._remote.steps(), "")]
                self._remote.fetch_beside(self._folder.parent)
            except RemoteFault as fault:
                shared = [(present, [], f"{self._remote.url}: cannot be used ({fault})")]
        dist.broadcast_object_list(shared, src=0, group=self._group)  # folders may be seen late
        present, copied, refused = shared[0]
        if refused and not present:
            if dist.get_rank():
                raise SystemExit(2)  # the first rank reports it; once is enough
            raise UserError(
                f"{refused}; mend run.copy_to, or the network and the credentials (docs/remote.md)"
            )
        if refused:
            self._report(f"warning: {refused}; the run continues from {self._folder}")
        return present, copied

    def _fetched(self, step: int, path: Path) -> bool:
        """Fetch a copy into its place; whether that went well, on every rank."""
        remote, hidden = self._remote, path.with_name(f".{path.name}.partial")
        assert remote is not None

        def fetch() -> None:
            remote.fetch(step, hidden)
            move_into_place(hidden, path)

        shared_fault = [_fault_of(fetch) if dist.get_rank() == 0 else ""]
        dist.broadcast_object_list(shared_fault, src=0, group=self._group)
        if shared_fault[0]:
            shutil.rmtree(hidden, ignore_errors=True)
            self._report(
                f"warning: passed over {remote.url}/checkpoints/{path.name}: {shared_fault[0]}"
            )
        else:
            self._report(f"fetched {remote.url}/checkpoints/{path.name}")
        return not shared_fault[0]

    def restore(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Load ``path`` into ``tensors`` in place, whatever number of ranks saved it."""
        load_tensors(path, tensors, self._group)

    def copy_found(self) -> None:
        """Start to copy what `newest` returned, if the copies have it not; the run's files must be
        up to date.
        """
        if self._uncopied is not None:
            self._pending = self._thread.submit(self._copy, self._uncopied)

    def _fault(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, as far as this rank looked."""
        return checkpoint_fault(path, dist.get_rank(), dist.get_world_size())

    def _make_folder(self) -> None:
        make_folder(self._folder)
        self._clean()

    def _clean(self) -> None:
        """Remove what killed runs left: folders that are no checkpoints yet, or no longer."""
        for leftover in [*self._folder.glob(".step-*.partial"), *self._folder.glob(".step-*.gone")]:
            shutil.rmtree(leftover, ignore_errors=True)

    def _report_failure(self, reason: str) -> None:
        self.failure = (
            f"{self._folder}: {reason}; the steps since the last checkpoint are lost: free the "
            "path or room, and start again"
        )
        self._report(
            f"warning: {self._folder}: {reason}; the run continues, and the checkpoints before "
            "stand"
        )

    def _report(self, line: str) -> None:
        if dist.get_rank() == 0:
            report(line)


def load_tensors(
    path: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup | None = None
) -> None:
    """Fill ``tensors`` in place. Raises `UserError` if the checkpoint holds other names or
    shapes.
    """
    reader = HuggingFaceStorageReader(str(path))
    key = "model.*"
    try:
        saved: dict[str, Any] = reader.read_metadata().state_dict_metadata
        for name, tensor in tensors.items():
            key = _key_of(name)
            if name not in saved:
                raise ValueError(f"{name} is missing")
            if tuple(saved[name].size) != tuple(tensor.shape):
                raise ValueError(
                    f"{name} has shape {list(saved[name].size)}, the model needs "
                    f"{list(tensor.shape)}"
                )
        key = "model.*"
        with warnings.catch_warnings():
            # As asked for.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(tensors, storage_reader=reader, process_group=group, no_dist=group is None)
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{path}: does not fit this model ({error}); was {key} changed since it was saved?"
        ) from None


def _key_of(name: str) -> str:
    """The config key that decides whether a checkpoint holds a tensor; weights come before what
    belongs to them.
    """
    kind = name.partition(".")[0]
    return {"model": "model.*", "ema": "train.ema"}.get(kind, "train.optimizer.name")


def _step(path: Path) -> int:
    step = step_of(path.name)
    assert step is not None
    return step


def _nothing() -> None:
    pass


def _last_exception(text: str) -> str:
    """What was raised last in ``text``, in which torch gives the traceback of every rank."""
    raised = re.findall(r"^\s*([\w.]*(?:Error|Exception|Fault)\b.*)$", text, re.MULTILINE)
    return " ".join((raised[-1] if raised else text).split())[-200:]


def _fault_of(act: Callable[[], None]) -> str:
    """What went wrong in ``act``, or nothing."""
    try:
        act()
    except (RemoteFault, UserError) as fault:
        return str(fault)
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""
