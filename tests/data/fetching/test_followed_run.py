"""Waiting for a run that fetches: as long as it lives, and not for what it gave up on."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mmscale.data.fetching import followed_run
from mmscale.data.fetching.followed_run import FollowedRun
from mmscale.data.fetching.run_folders import given_up_file, make_run_folder, remove_run_folder


@pytest.fixture
def living(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, int]:
    monkeypatch.setattr(followed_run, "_LOOK_S", 0.0)
    return make_run_folder(tmp_path, "run")


def test_what_comes_is_given(living: tuple[Path, int]) -> None:
    answers = iter([None, None, 7])
    assert FollowedRun(living[0]).wait_for(lambda: "a", lambda: next(answers)) == 7


def test_what_the_run_gave_up_on_is_not_waited_for(living: tuple[Path, int]) -> None:
    given_up_file(living[0], "a").touch()
    run = FollowedRun(living[0])
    assert run.wait_for(lambda: "a", lambda: None) is None
    run.doubt("b")
    assert run.wait_for(lambda: "b", lambda: pytest.fail("it was not to be looked for")) is None


def test_a_run_that_ends_is_waited_for_no_more(living: tuple[Path, int]) -> None:
    run, looks = FollowedRun(living[0]), threading.Event()

    def find() -> None:
        looks.set()

    def end() -> None:
        looks.wait()
        remove_run_folder(*living)

    ending = threading.Thread(target=end)
    ending.start()
    assert run.wait_for(lambda: "a", find) is None
    ending.join()
    assert run.wait_for(lambda: "b", lambda: pytest.fail("it is over")) is None


def test_a_run_that_never_begins_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(followed_run, "_BEGINS_S", 0.05)
    run = FollowedRun(tmp_path / "runs" / "none")
    assert run.wait_for(lambda: "a", lambda: None) is None
    assert run.wait_for(lambda: "b", lambda: os.abort()) is None
