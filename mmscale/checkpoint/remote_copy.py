"""Copies of a run's checkpoints in an object store, written through fsspec.

    <url>/config.yaml, tokenizer.json, …             what else a run needs to resume
    <url>/checkpoints/step-00000500/                 the files of the checkpoint, and state.json

An object is there whole or not at all, and ``state.json`` is written last and removed first: where
it is, the checkpoint is. So the folder below ``url``, fetched by any tool, is a run directory.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmscale.checkpoint.run_state import (
    MAX_STATE_BYTES,
    STATE,
    RetentionPolicy,
    RunState,
    checkpoint_name,
    decode_state,
    step_of,
    superfluous,
)
from mmscale.data.storage.remote_file import CHUNK, RemoteFault, RemoteFile, attempt, check_remote
from mmscale.durable import make_folder, sync_folder, write_durably
from mmscale.errors import UserError

_SCHEMES = ("s3://", "gs://")
_RETRIES = 4  # three seconds of pauses: the next save waits for this one
_BESIDE = re.compile(
    r"config\.yaml|tokenizer\.json|classes\.json|data/(history|shards\.[0-9a-f]{64})\.json"
)
_MAX_BESIDE_BYTES = 1 << 30


class RemoteCopy:
    """The copies of one run.

    Args:
        url: ``run.copy_to``.

    Raises:
        UserError: no URL of an object store, or its library is missing.
    """

    def __init__(self, url: str) -> None:
        if not url.startswith(_SCHEMES):
            raise UserError(
                f"run.copy_to: {url.partition('://')[0]}: is not written to; give a URL s3://… "
                "or gs://…"
            )
        check_remote(url)
        self.url = url.rstrip("/")

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending. Raises `RemoteFault` if the store cannot be
        asked or used.
        """
        names_of_objects = self._list()
        if not names_of_objects:
            # An empty listing and a missing bucket look alike to some stores; and who cannot write
            # shall learn it now.
            probe = f"{self.url}/.writable"
            attempt(probe, _RETRIES, lambda system: system.pipe_file(probe, b""))
            attempt(probe, _RETRIES, lambda system: system.rm_file(probe))
        return sorted(step for step, names in _by_step(names_of_objects).items() if STATE in names)

    def put(self, checkpoint: Path, names: Iterable[str]) -> None:
        """Copy some of a checkpoint's files. Raises `RemoteFault`, or `OSError` if they cannot be
        read.
        """
        for name in names:
            self._put(checkpoint / name, f"{self._place(checkpoint.name)}/{name}")

    def begin(self, checkpoint: Path) -> None:
        """What an earlier life of the run left of this checkpoint is none from now on. Raises
        `RemoteFault`.
        """
        self._remove([f"{self._place(checkpoint.name)}/{STATE}"])

    def commit(self, checkpoint: Path, run_dir: Path, keep: RetentionPolicy, before: int) -> None:
        """When all of a checkpoint's files are there: make it exist, and remove what need not stay
        (`superfluous`).

        Raises `RemoteFault`, or `OSError` if files of the run cannot be read.
        """
        for path in [*sorted(run_dir.rglob("*.json")), run_dir / "config.yaml"]:
            name = path.relative_to(run_dir).as_posix()
            if _BESIDE.fullmatch(name) and path.is_file():
                self._put(path, f"{self.url}/{name}")
        self._put(checkpoint / STATE, f"{self._place(checkpoint.name)}/{STATE}")
        step = step_of(checkpoint.name)
        assert step is not None
        self._prune(keep, step, before)

    def fetch_beside(self, run_dir: Path) -> None:
        """Fetch what a run needs beside its checkpoints, where ``run_dir`` does not have it. Raises
        `RemoteFault`.
        """
        for name in self._list():
            if _BESIDE.fullmatch(name) and not (run_dir / name).exists():
                raw = self._read(f"{self.url}/{name}", _MAX_BESIDE_BYTES)
                make_folder((run_dir / name).parent)
                write_durably(run_dir / name, raw.decode("utf-8"))

    def fetch(self, step: int, into: Path) -> None:
        """Write a checkpoint's files into the folder ``into``, checked and flushed.

        Raises `RemoteFault` if it cannot be fetched or is damaged, and `OSError` if ``into`` cannot
        be written.
        """
        place = self._place(checkpoint_name(step))
        text = self._read(f"{place}/{STATE}", MAX_STATE_BYTES).decode("utf-8", "replace")
        try:
            _, files = decode_state(text)
        except ValueError as error:
            raise RemoteFault(f"{STATE} is damaged: {error}") from None
        make_folder(into)
        for name, fact in files.items():
            self._fetch_file(f"{place}/{name}", into / name, fact)
        write_durably(into / STATE, text)
        sync_folder(into)

    def _fetch_file(self, url: str, path: Path, fact: dict[str, Any]) -> None:
        digest = hashlib.sha256()
        with RemoteFile(url, _RETRIES) as source, open(path, "wb") as file:
            if source.size != fact["bytes"]:
                raise RemoteFault(f"{path.name} is not {fact['bytes']} bytes long")
            buffered = io.BufferedReader(source, CHUNK)
            while piece := buffered.read(CHUNK):
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != fact["sha256"]:
            raise RemoteFault(f"{path.name} has another SHA-256 than when it was written")

    def _prune(self, keep: RetentionPolicy, saved: int, before: int) -> None:
        """Remove checkpoints that need not stay, and files of those that never were complete."""
        stored = _by_step(self._list())
        states: dict[int, RunState | None] = {}
        for step in (step for step, names in stored.items() if STATE in names):
            try:
                raw = self._read(f"{self._place(checkpoint_name(step))}/{STATE}", MAX_STATE_BYTES)
                states[step] = decode_state(raw.decode("utf-8", "replace"))[0]
            except ValueError:
                states[step] = None
        for step in [*superfluous(states, keep, saved, before), *(stored.keys() - states.keys())]:
            place = self._place(checkpoint_name(step))
            self._remove([f"{place}/{STATE}"])
            self._remove([f"{place}/{name}" for name in stored[step] if name != STATE])

    def _list(self) -> list[str]:
        """Names of all objects below the URL."""

        def names(system: Any) -> list[str]:
            root = system._strip_protocol(self.url)
            return [path.removeprefix(f"{root}/") for path in system.find(self.url)]

        return attempt(self.url, _RETRIES, names)

    def _put(self, path: Path, url: str) -> None:
        with open(path, "rb"):
            pass  # what cannot be read is no fault of the store
        attempt(url, _RETRIES, lambda system: system.put_file(str(path), url))

    def _read(self, url: str, most: int) -> bytes:
        with RemoteFile(url, _RETRIES) as file:
            if file.size > most:
                raise RemoteFault(f"{url.rpartition('/')[2]} is larger than {most >> 20} MiB")
            return io.BufferedReader(file, CHUNK).read()

    def _remove(self, urls: list[str]) -> None:
        for url in urls:

            def remove(system: Any, url: str = url) -> None:
                if system.exists(url):
                    system.rm_file(url)

            attempt(url, _RETRIES, remove)

    def _place(self, name: str) -> str:
        return f"{self.url}/checkpoints/{name}"


def _by_step(names: Iterable[str]) -> dict[int, list[str]]:
    """Names inside of the checkpoints' folders."""
    by_step: dict[int, list[str]] = {}
    for name in names:
        parts = name.split("/")
        step = step_of(parts[1]) if len(parts) == 3 and parts[0] == "checkpoints" else None
        if step is not None:
            by_step.setdefault(step, []).append(parts[2])
    return by_step
