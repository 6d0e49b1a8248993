"""Which sets of a source with splits are complete, so that a killed pack continues with the next.

``OUT/.pack/sets.jsonl`` has one row a complete set: its name, what decided its bytes, and a hash of
its samples' fingerprints. It goes when all sets are complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mmscale.data.index.build_index import has_index
from mmscale.data.index.manifest import Manifest
from mmscale.data.ingest.pack_state import FOLDER
from mmscale.data.ingest.sources import Source
from mmscale.errors import UserError

_FILE = "sets.jsonl"


class FinishedSets:
    """The sets of one pack into ``out``. A context manager."""

    def __init__(self, out: Path, names: list[str]) -> None:
        self._out, self._names = out, names
        self._folder = out / FOLDER
        self._rows: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        """Raises `UserError` when ``out``, or the folder of a set, holds shards of other origin."""
        try:
            self._read()
            self._refuse_foreign()
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self._folder}: cannot be written ({error.strerror}); check its rights"
            ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Without an error all sets are complete."""
        if kind is None or not self._rows:
            shutil.rmtree(self._folder, ignore_errors=True)

    def kept(self, name: str, source: Source, plan: dict[str, Any]) -> Manifest | None:
        """The manifest of a set that is complete; None: it is to be written.

        Raises `UserError` where its samples, or the options, are not what they were.
        """
        row = self._rows.get(name)
        if row is None or not has_index(self._out / name):
            return None
        if row != _row(name, source, plan):
            raise UserError(
                f"{self._out / name}: packed before from other samples or with other options; "
                f"restore them, or remove {self._out / name} and {self._folder} to start anew"
            )
        shutil.rmtree(self._out / name / FOLDER, ignore_errors=True)
        return Manifest.open(self._out / name)

    def add(self, name: str, source: Source, plan: dict[str, Any]) -> None:
        """Record that a set is complete."""
        row = _row(name, source, plan)
        with open(self._folder / _FILE, "a", encoding="utf-8") as file:
            # Before it too: the last line may be one that a kill cut short.
            file.write("\n" + json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._rows[name] = row

    def _read(self) -> None:
        path = self._folder / _FILE
        if not path.exists():
            return
        for line in path.read_text("utf-8").splitlines():
            try:
                row = json.loads(line)
                self._rows[row["set"]] = row
            except (ValueError, TypeError, KeyError):
                continue  # killed while it was written: that set is not known to be complete

    def _refuse_foreign(self) -> None:
        if (self._folder / "plan.json").exists():
            raise UserError(
                f"{self._out}: an unfinished pack of one set is there; give its command again, or "
                f"remove {self._folder}"
            )
        for name in ("", *self._names):
            folder = self._out / name
            if name in self._rows or (name and (folder / FOLDER).exists()):
                continue
            shard = next(iter(sorted(folder.glob("*.tar"))), None)
            if shard is not None or has_index(folder):
                raise UserError(
                    f"{folder}: already holds {f'shards ({shard.name})' if shard else 'an index'}; "
                    "name an empty folder or remove it"
                )


def _row(name: str, source: Source, plan: dict[str, Any]) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for number in range(source.portions[-1].stop):
        digest.update(source.fingerprint(number))
    return {"set": name, **plan, "fingerprints": digest.hexdigest()}
