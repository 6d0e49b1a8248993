"""A whole run on a GPU: trained, killed, taken up again, evaluated, released, and the release
answers.
"""

import json
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, run_module
from killing import metrics
from patience import patience


def mmscale(*words, check=True):
    return run_module(["mmscale", *words], check=check, needs=30)


def numbers(tree, path=""):
    """Every (path, number) in what JSON holds."""
    if isinstance(tree, dict):
        return [row for name in sorted(tree) for row in numbers(tree[name], f"{path}.{name}")]
    return [(path, tree)] if isinstance(tree, (int, float)) else []


@pytest.fixture(scope="module")
def trained(small_run, tmp_path_factory):
    """(the run, the same killed in its middle and continued)."""
    folder = tmp_path_factory.mktemp("runs")
    common = [
        "train",
        "configs/train/digits.yaml",
        *small_run,
        "train.steps=60",
        "train.checkpoint_every=10",
    ]
    common += ["model.width=64", "data.workers=2", "model.dropout=0.0"]
    mmscale(*common, f"run.dir={folder}/whole")
    command = [sys.executable, "-m", "mmscale", *common, f"run.dir={folder}/killed"]
    victim = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + patience(20)
    while not (folder / "killed/checkpoints/step-0000000020").exists() and victim.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    mmscale(*common, f"run.dir={folder}/killed")
    return folder / "whole", folder / "killed"


def test_a_killed_run_ends_as_the_undisturbed_one(trained):
    whole, killed = (metrics(folder) for folder in trained)
    assert [row["step"] for row in killed] == list(range(60))
    assert {row["device"] for row in whole} == {"cuda"}
    assert all(0 < row["mfu"] < 1 for row in whole[1:])
    for one, other in zip(whole, killed, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.02)
    assert whole[-1]["loss"] < 0.9 * whole[0]["loss"]


def test_scores_of_the_run_are_those_of_its_release_on_a_cpu(
    trained, small_digits, tmp_path, monkeypatch
):
    run, release = trained[0], tmp_path / "release"
    scores = json.loads(
        mmscale("eval", str(run), "--data", f"{small_digits}/test", "--json").stdout
    )
    mmscale("export", str(run), "--out", str(release))
    mmscale("verify", str(release))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    there = json.loads(
        mmscale("eval", str(release), "--data", f"{small_digits}/test", "--json").stdout
    )
    for (name, here), (_, other) in zip(numbers(scores), numbers(there), strict=True):
        assert here == pytest.approx(other, abs=0.1), name


def test_doctor():
    done = mmscale("doctor", check=False)
    assert "NVIDIA" in done.stdout, done.stdout + done.stderr
