"""What an unfinished pack leaves behind, so that the same command continues it.

Everything stands in ``OUT/.pack/`` until all shards are complete: ``plan.json`` (what decides the
bytes of the shards), ``finished.jsonl`` (one row a complete shard: name, bytes, fingerprints of its
samples in order), the complete shards, and temporary files. At the end the shards move to ``OUT``
and the folder goes.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mmscale.data.index.build_index import has_index
from mmscale.data.ingest.table_row import FINGERPRINT_BYTES
from mmscale.data.storage.file_lock import try_lock
from mmscale.errors import UserError

VERSION = 1
FOLDER = ".pack"

_PLAN, _FINISHED, _LOCK = "plan.json", "finished.jsonl", "lock"


@dataclass(frozen=True)
class FinishedShard:
    """A complete shard of ``size`` bytes; ``fingerprints`` are those of its samples, joined."""

    size: int
    fingerprints: bytes

    def first_change(self, fingerprints: bytes) -> int | None:
        """Position of the first sample whose fingerprint is another now; None if none is."""
        assert len(self.fingerprints) == len(fingerprints)
        for at in range(0, len(fingerprints), FINGERPRINT_BYTES):
            span = slice(at, at + FINGERPRINT_BYTES)
            if self.fingerprints[span] != fingerprints[span]:
                return at // FINGERPRINT_BYTES
        return None


class PackState:
    """The state of one pack into ``out``, held by one process at a time. A context manager.

    Args:
        out: the folder of the shards; made if it does not exist.
        plan: everything that decides the bytes of the shards besides the samples themselves.
        samples: by name of each shard, how many samples it holds.

    Attributes:
        folder: ``OUT/.pack``, for temporary files whose names end in ``.tmp``.
        finished: the complete shards by name.
    """

    def __init__(self, out: Path, plan: dict[str, Any], samples: dict[str, int]) -> None:
        self._out, self.folder = out, out / FOLDER
        self._plan, self._samples = {"version": VERSION, **plan}, samples
        self.finished: dict[str, FinishedShard] = {}
        self._lock = -1

    def __enter__(self) -> Self:
        """Begin or continue.

        Raises `UserError` when ``out`` holds shards or an index of other origin, when the
        unfinished pack there has another plan, and when another process is at it.
        """
        if self._out.exists() and not self._out.is_dir():
            raise UserError(f"{self._out}: a file; name a folder for the shards")
        if not (self.folder / _PLAN).exists():
            self._refuse_foreign()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            if (self.folder / _PLAN).exists():
                self._continue()
            else:
                self._write(_PLAN, json.dumps(self._plan, indent=1))
        except OSError as error:
            self._release()
            raise UserError(
                f"{self.folder}: cannot be written ({error.strerror}); check its rights"
            ) from None
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Keep what is complete. Raises `UserError` in place of an `OSError`, such as of a full
        disk.
        """
        if self.finished:
            self._remove_unfinished()
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._release()
        if isinstance(error, OSError):
            where = error.filename or self._out
            raise UserError(
                f"{where}: {error.strerror}; mend that and give the same command again"
            ) from None

    def add(self, name: str, written: Path, fingerprints: bytes) -> None:
        """Keep the complete and synced shard ``written``, a file in ``folder``, as ``name``."""
        size = written.stat().st_size
        row = {"shard": name, "bytes": size, "fingerprints": fingerprints.hex()}
        # Recorded before it is renamed: a shard without a record is never ours.
        with open(self.folder / _FINISHED, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, self.folder / name)
        self.finished[name] = FinishedShard(size, fingerprints)

    def publish(self) -> None:
        """Move all shards to ``out``, now that they are complete."""
        assert self.finished.keys() == self._samples.keys()
        for name in self.finished:
            if (self.folder / name).exists():
                os.replace(self.folder / name, self._out / name)

    def close(self) -> None:
        """Remove every trace: the shards are in ``out`` and indexed."""
        shutil.rmtree(self.folder)
        self.finished.clear()

    def _refuse_foreign(self) -> None:
        """Refuse shards in ``out`` that no record knows, and an index that is not of our shards."""
        foreign = sorted(
            path.name for path in self._out.glob("*.tar") if path.name not in self.finished
        )
        if foreign:
            raise UserError(
                f"{self._out}: already holds shards ({foreign[0]}); name an empty folder or remove "
                "them"
            )
        # Only when all shards had been published could the last attempt have come to the index.
        complete = bool(self.finished) and all(
            (self._out / name).exists() for name in self._samples
        )
        if has_index(self._out) and not complete:
            raise UserError(
                f"{self._out}: already holds an index; name an empty folder or remove it"
            )

    def _continue(self) -> None:
        before = self._read_plan()
        for name, value in self._plan.items():
            if before.get(name) != value:
                raise UserError(
                    f"{self._out}: the unfinished pack there was begun with "
                    f"{name}={before.get(name)}, not {value}; restore the source and the options, "
                    f"or remove {self.folder} to start anew"
                )
        self._read_finished()
        self._refuse_foreign()
        self._remove_unfinished()

    def _read_plan(self) -> dict[str, Any]:
        try:
            plan = json.loads((self.folder / _PLAN).read_bytes())
        except ValueError:
            plan = None
        if not isinstance(plan, dict):
            raise self._damaged(_PLAN)
        return plan

    def _read_finished(self) -> None:
        path = self.folder / _FINISHED
        if not path.exists():
            return
        *lines, rest = path.read_bytes().split(b"\n")
        if rest:  # killed while it was written, so the shard was not renamed
            os.truncate(path, path.stat().st_size - len(rest))
        for line in lines:
            try:
                row = json.loads(line)
                name, shard = (
                    row["shard"],
                    FinishedShard(row["bytes"], bytes.fromhex(row["fingerprints"])),
                )
                sound = len(shard.fingerprints) == self._samples[name] * FINGERPRINT_BYTES
            except (ValueError, TypeError, KeyError):
                sound = False
            if not sound:
                raise self._damaged(_FINISHED)
            if shard.size in (_size(self.folder / name), _size(self._out / name)):
                self.finished[name] = shard

    def _remove_unfinished(self) -> None:
        kept = {_PLAN, _FINISHED, _LOCK, *self.finished}
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def _write(self, name: str, text: str) -> None:
        unfinished = self.folder / f"{name}.tmp"
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, self.folder / name)

    def _take_lock(self) -> None:
        self._lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        if not try_lock(self._lock):
            raise UserError(f"{self._out}: another `data pack` writes there; wait until it ends")

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _damaged(self, name: str) -> UserError:
        return UserError(f"{self.folder / name}: damaged; remove {self.folder} to start anew")


def _size(path: Path) -> int:
    """Bytes of a file; -1 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
