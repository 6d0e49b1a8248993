"""Lines for people, on stderr: stdout is for results."""

from __future__ import annotations

import sys


def report(line: str) -> None:
    """``mmscale: line``."""
    write_line(f"mmscale: {line}")


def warn(line: str) -> None:
    """``mmscale: warning: line``, for what does not stop a run and is not as it should be."""
    report(f"warning: {line}")


def write_line(line: object) -> None:
    """``line`` as it is, such as one of a list that another line ends."""
    print(line, file=sys.stderr)
