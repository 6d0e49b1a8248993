"""Trackers of a plug-in's kind: they get what metrics.jsonl has, and cannot stop a run."""

import pytest
from killing import metrics
from small_run import small_config, write_shards

from mmscale.config import RunConfig
from mmscale.config_file import config_from_tree, to_tree
from mmscale.errors import UserError
from mmscale.registry import TRACKERS
from mmscale.train.loop import train
from mmscale.train.tracking import Trackers


class Notes:
    """Notes every call. ``fails``: the call that raises, and what it raises."""

    fails = (None, None)

    def __init__(self):
        self.calls = Notes.made = []

    def open(self, folder, start):
        self._note("open", folder, start)

    def scalars(self, step, values):
        self._note("scalars", step, dict(values))

    def close(self):
        self._note("close")

    def _note(self, *call):
        self.calls.append(call)
        if call[0] == self.fails[0]:
            raise self.fails[1]


@pytest.fixture
def notes():
    TRACKERS.register("notes", Notes)
    yield Notes
    del TRACKERS._kinds["notes"]


def run_config(tmp_path):
    write_shards(tmp_path / "shards", count=4)
    config = small_config(tmp_path / "run", tmp_path / "shards")
    config.train.steps, config.data.workers, config.parallel.threads = 2, 0, 1
    config.train.precision, config.data.max_bad_fraction = "fp32", 1.0
    config.model.vocab_size, config.data.tokenizer.vocab_size = 0, 300
    config.train.log_every = 1
    config.run.progress = config.run.tensorboard = False
    config.run.trackers = ["notes"]
    return config


def test_a_tracker_gets_the_steps_of_a_run_and_of_what_resumes_it(tmp_path, notes):
    config = config_from_tree(to_tree(run_config(tmp_path)), "test")  # its name is a choice
    train(config, until=1)
    first = notes.made
    train(config)
    rows = metrics(tmp_path / "run")
    for calls, row in ((first, rows[0]), (notes.made, rows[1])):
        (opened, (_, step, values), closed) = calls
        assert opened == ("open", tmp_path / "run", row["step"]) and closed == ("close",)
        assert step == row["step"] and values["loss"] == row["loss"]
        assert {name for name in values if name.startswith("losses/")} == {
            f"losses/{name}" for name in row["losses"]
        }
    assert not (tmp_path / "run" / "tensorboard").exists()


FAILURES = [
    ("open", RuntimeError("no server"), "RuntimeError: no server"),
    ("scalars", OSError(28, "No space left on device"), "No space left on device"),
    ("close", KeyError("gone"), "KeyError: 'gone'"),
]


@pytest.mark.parametrize(("call", "error", "reason"), FAILURES)
def test_one_that_fails_is_reported_once_and_left_out(
    tmp_path, notes, monkeypatch, capfd, call, error, reason
):
    monkeypatch.setattr(notes, "fails", (call, error))
    train(run_config(tmp_path))
    printed = capfd.readouterr().err
    assert printed.count("tracker notes") == 1
    assert f"mmscale: warning: tracker notes: gets nothing more ({reason})" in printed
    calls = [name for name, *_ in notes.made]
    assert calls == ["open", "scalars", "scalars", "close"][: calls.index(call) + 1]
    assert len(metrics(tmp_path / "run")) == 2


def test_the_others_still_get_everything_when_one_fails(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(notes, "fails", ("open", OSError(13, "Permission denied")))
    trackers = Trackers(RunConfig(dir=str(tmp_path), trackers=["notes"]), 0)
    trackers.scalars(0, {"loss": 1.0})
    trackers.close()
    assert [name for name, *_ in notes.made] == ["open"]
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"run\.trackers: 'notes' is not one of 'tensorboard'"):
        config_from_tree(to_tree(run_config(tmp_path)), "test")
    with pytest.raises(AssertionError, match="no tracker is named 'notes'"):
        Trackers(RunConfig(dir=str(tmp_path), tensorboard=False, trackers=["notes"]), 0)
