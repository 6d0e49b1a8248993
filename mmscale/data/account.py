"""What a pass over a user's data took, and what it did not: nothing is left out without a line.

A pass notes each thing that it leaves out, merges or reads in a way that may surprise, under a
`Notice`: a sentence and the option or remedy that decides it. At its end `Account.tell` prints one
line for each kind, with the count and three examples. With ``strict`` every kind is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmscale.errors import UserError
from mmscale.messages import warn

_EXAMPLES = 3


@dataclass(frozen=True)
class Notice:
    """A kind of thing that was not simply taken.

    Attributes:
        what: of several, in words that follow their number: "files with endings that are not read".
        remedy: the option or the act that changes it: "--merge-splits joins them".
    """

    what: str
    remedy: str


@dataclass
class _Seen:
    count: int = 0
    examples: list[str] = field(default_factory=list)


class Account:
    """The notices of one pass, in the order in which each kind was first met."""

    def __init__(self) -> None:
        self._seen: dict[Notice, _Seen] = {}

    def note(self, notice: Notice, example: str, count: int = 1) -> None:
        """Note ``count`` things; ``example`` names one of them."""
        seen = self._seen.setdefault(notice, _Seen())
        seen.count += count
        if len(seen.examples) < _EXAMPLES and example not in seen.examples:
            seen.examples.append(example)

    def add(self, other: Account) -> None:
        """Take over what another pass noted, of a worker or of a part."""
        for notice, seen in other._seen.items():
            mine = self._seen.setdefault(notice, _Seen())
            mine.count += seen.count
            fresh = [one for one in seen.examples if one not in mine.examples]
            mine.examples = [*mine.examples, *fresh][:_EXAMPLES]

    def drop(self, notice: Notice) -> None:
        """Forget what was noted under ``notice``, as what was asked for."""
        self._seen.pop(notice, None)

    def as_json(self) -> list[list[Any]]:
        """What `from_json` takes."""
        return [
            [notice.what, notice.remedy, seen.count, list(seen.examples)]
            for notice, seen in self._seen.items()
        ]

    @classmethod
    def from_json(cls, rows: list[list[Any]]) -> Account:
        """An account as it was kept. Raises `ValueError` or `TypeError` for anything else."""
        account = cls()
        for what, remedy, count, examples in rows:
            if not all(isinstance(text, str) for text in (what, remedy, *examples)):
                raise TypeError("a notice is of strings")
            account._seen[Notice(what, remedy)] = _Seen(int(count), list(examples))
        return account

    def lines(self) -> list[str]:
        """One line a kind: how many, what, examples, remedy."""
        return [
            f"{seen.count} {notice.what} ({_listed(seen)}); {notice.remedy}"
            for notice, seen in self._seen.items()
        ]

    def tell(self, strict: bool = False) -> None:
        """Print every line as a warning.

        Raises `UserError` in place of that where ``strict`` is asked for and there is any.
        """
        lines = self.lines()
        if strict and lines:
            for line in lines[:-1]:
                warn(line)
            raise UserError(f"--strict: {lines[-1]}")
        for line in lines:
            warn(line)


def _listed(seen: _Seen) -> str:
    more = ", …" if seen.count > len(seen.examples) else ""
    return ", ".join(seen.examples) + more
