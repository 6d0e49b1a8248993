"""Files of JSON lines that report steps: metrics.jsonl, skipped.jsonl, quarantine.jsonl."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mmscale.durable import write_durably
from mmscale.errors import UserError
from mmscale.messages import warn


class JsonlLog:
    """A file to which objects are added, a line each. A full disk does not end the run: what has no
    room waits.

    Raises:
        UserError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._left, self._reported = path, b"", False
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _no_file(path, error) from None

    def add(self, *rows: dict[str, Any]) -> None:
        """Write ``rows``, and what waits."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self._left += text.encode("utf-8", "backslashreplace")
        self.flush()

    def flush(self, durably: bool = False) -> None:
        """Write what waits; ``durably``: to the disk. Warns, once, if it cannot."""
        try:
            while self._left:
                self._left = self._left[self._file.write(self._left) :]
            if durably:
                os.fsync(self._file.fileno())
            self._reported = False
        except OSError as error:
            if not self._reported:
                self._reported = True
                warn(
                    f"{self._path}: cannot be written ({error.strerror}); its lines wait in "
                    "memory, free space"
                )

    def close(self) -> None:
        """Close the file; what waits is tried once more."""
        self.flush()
        self._file.close()


def cut_lines(path: Path, start: int) -> None:
    """Leave only the lines of steps before ``start``; without a file, make an empty one.

    Raises:
        UserError: the file cannot be read or written.
    """
    kept = []
    try:
        for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the end, or a line cut short by a crash
            if row["step"] < start:
                kept.append(line + "\n")
        write_durably(path, "".join(kept))
    except OSError as error:
        raise _no_file(path, error) from None


def _no_file(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be written ({error.strerror}); free space, or choose another run.dir"
    )
