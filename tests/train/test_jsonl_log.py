"""Lines about steps: what a full disk has no room for waits, and is there whole once it has."""

import json
import os
import subprocess

import pytest
from conftest import ROOT

from mmscale.errors import UserError
from mmscale.train.jsonl_log import JsonlLog, cut_lines


@pytest.fixture
def small_disk(tmp_path):
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=False
        ).returncode
    ):
        pytest.skip("a full disk is a small tmpfs, which needs root to mount")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_makes_lines_wait(small_disk, capfd):
    lines = JsonlLog(small_disk / "metrics.jsonl")
    lines.add({"step": 0, "key": "猫\u2028"})
    filler = small_disk / "filler"
    filler.write_bytes(bytes(52 << 10))
    rows = [{"step": step, "text": "x" * 200} for step in range(1, 100)]
    for row in rows:
        lines.add(row)
    lines.flush(durably=True)
    errors = capfd.readouterr().err
    assert errors.count("metrics.jsonl: cannot be written (No space left on device)") == 1, (
        "reported once"
    )
    filler.unlink()
    lines.close()
    written = [
        json.loads(line) for line in (small_disk / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert written == [{"step": 0, "key": "猫\u2028"}, *rows]


def test_lines_are_cut_to_the_steps_before(tmp_path):
    path = tmp_path / "skipped.jsonl"
    lines = JsonlLog(path)
    lines.add(*({"step": step, "key": "\u2028\x85"} for step in range(5)))
    lines.close()
    with path.open("a") as file:
        file.write('{"step": 1, "ke')  # as a crash leaves it
    cut_lines(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().split("\n")[:-1]] == [0, 1, 2]


def test_a_file_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for act in (JsonlLog, lambda path: cut_lines(path, 0)):
        with pytest.raises(
            UserError, match=r"file/x\.jsonl: cannot be written \(Not a directory\)"
        ):
            act(tmp_path / "file" / "x.jsonl")


def test_a_run_outlives_its_disk(small_run, tmp_path):
    """Files of at most 12 kB: the metrics of 40 steps have no room, and no checkpoint has."""
    import resource
    import sys

    run = ["configs/train/digits.yaml", *small_run, f"run.dir={tmp_path}"]
    run += ["train.steps=40", "train.checkpoint_every=20"]
    done = subprocess.run(
        [sys.executable, "-m", "mmscale", "train", *run],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000)),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert "metrics.jsonl: cannot be written (File too large); its lines wait" in done.stderr
    assert "could not be written" in done.stderr.splitlines()[-1], "the last save failed"
