"""What a pass did not simply take is told once a kind, with count, examples and remedy."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mmscale.data.account import Account, Notice
from mmscale.errors import UserError

ODD = Notice("odd things", "make them even")
LOST = Notice("lost things", "--find finds them")


def noted() -> Account:
    account = Account()
    for number in range(5):
        account.note(ODD, f"thing {number % 4}")
    account.note(LOST, "one", 7)
    return account


LINES = [
    "5 odd things (thing 0, thing 1, thing 2, …); make them even",
    "7 lost things (one, …); --find finds them",
]


def test_a_line_for_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert noted().lines() == LINES
    noted().tell()
    assert capsys.readouterr().err == "".join(f"mmscale: warning: {line}\n" for line in LINES)


def test_strict_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as error:
        noted().tell(strict=True)
    assert str(error.value) == f"--strict: {LINES[1]}" and LINES[0] in capsys.readouterr().err
    Account().tell(strict=True)


def test_parts_add_up_to_the_whole() -> None:
    whole = noted()
    other = Account()
    other.note(ODD, "thing 9")
    other.note(ODD, "thing 0")
    whole.add(other)
    assert whole.lines()[0] == LINES[0].replace("5", "7")
    few = Account()
    few.add(other)
    few.add(other)
    assert few.lines() == ["4 odd things (thing 9, thing 0, …); make them even"]


def test_what_was_asked_for_is_dropped() -> None:
    account = noted()
    account.drop(ODD)
    account.drop(ODD)
    assert account.lines() == LINES[1:]


def test_it_can_be_kept() -> None:
    kept = json.loads(json.dumps(noted().as_json()))
    assert Account.from_json(kept).lines() == LINES


@pytest.mark.parametrize("rows", [[["a", "b", 1]], [["a", 2, 1, []]], [["a", "b", "x", []]], 3])
def test_what_is_no_account(rows: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Account.from_json(rows)
