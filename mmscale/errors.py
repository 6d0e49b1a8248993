"""The two kinds of failure a user can meet; everything else is a bug and keeps its traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input. The message is one line that names the file or key and the remedy.

    The command line prints the message without a traceback and exits with status 2.
    """


class SampleFault(Exception):
    """One sample cannot be used (unreadable, undecodable, over a limit).

    The data plane masks the sample's place in its sequence, writes the reason to
    ``quarantine.jsonl`` and continues; it never shifts another sample.
    """
