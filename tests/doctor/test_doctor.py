"""`mmscale doctor` and the preflight on real ranks: sound ones, and ones with a sick machine among
them.
"""

import json
import os
import socket
import subprocess
import sys

import pytest
from conftest import ROOT, run_module
from patience import patience

from mmscale.cli import main

CONFIG = "configs/train/digits.yaml"


def start_two(port, *module):
    """Start ``python -m module…`` as two ranks, one per machine, that meet at ``port``."""
    variables = {
        **os.environ, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": f"{ROOT}:{ROOT}/tests:{ROOT}/tests/doctor",
    }  # fmt: skip
    return [
        subprocess.Popen(
            [sys.executable, "-m", *module], cwd=ROOT, env=variables | {"RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip


def by_name(report):
    return {check["name"]: check for check in report["checks"]}


def test_a_sound_machine(small_run, tmp_path):
    done = run_module(
        ["mmscale", "doctor", CONFIG, *small_run, f"run.dir={tmp_path}", "--json"], ranks=2
    )
    report = json.loads(done.stdout)
    assert (
        report["verdict"] == "ok"
        and report["ranks"] == 2
        and report["machines"] == [socket.gethostname()]
    )
    checks = by_name(report)
    assert list(checks) == [
        "ranks", "versions", "gpus", "network", "clocks", "disk space", "shards", "all-reduce",
    ]  # fmt: skip
    assert "GB/s by Gloo" in checks["all-reduce"]["text"] and "1 shards" in checks["shards"]["text"]
    assert not list(tmp_path.iterdir()), "it only looks"


def test_without_a_launcher_and_without_a_config():
    output = run_module(["mmscale", "doctor"]).stdout
    assert "shared memory" in output and "all-reduce" not in output and "shards" not in output


def test_the_sick_machine_is_named(small_run, tmp_path, port):
    """Another torch, a clock of 100 s ahead, no folder for the run, a shard that only one rank
    reaches.
    """
    first, second = start_two(port, "sick", "many", CONFIG, *small_run, f"run.dir={tmp_path}")
    output, complaint = first.communicate(timeout=patience(15))
    second.communicate(timeout=patience(15))
    assert first.returncode == second.returncode == 0, complaint
    report = json.loads(output)
    checks = by_name(report)
    assert report["machines"] == ["sound", "sick"] and report["verdict"] == "failed"
    for name, text in {
        "versions": "torch 1.0, the others 2.",
        "clocks": "100.0 s ahead",
        "disk space": "checkpoints (/proc/run)",
        "shards": "/absent",
    }.items():
        assert checks[name]["verdict"] == "failed" and checks[name]["machines"] == ["sick"], checks[
            name
        ]
        assert f"sick: {text}" in checks[name]["text"] or text in checks[name]["text"], checks[name]
    assert checks["network"]["verdict"] == checks["gpus"]["verdict"] == "ok"
    assert "all-reduce" not in checks, "nothing is measured on sick machines"


def test_a_rank_that_hangs_is_named(small_run, tmp_path, port):
    first, second = start_two(port, "sick", "hangs", CONFIG, *small_run, f"run.dir={tmp_path}")
    try:
        output, complaint = first.communicate(timeout=patience(15))
    finally:
        second.kill()
        second.communicate()
    assert first.returncode == 0, complaint
    ranks = by_name(json.loads(output))["ranks"]
    assert ranks["verdict"] == "failed" and ranks["machines"] == ["sick"]
    assert "rank 1 on sick hangs at: shards" in ranks["text"]


def test_a_run_does_not_begin_on_a_sick_machine(small_run, tmp_path, port):
    small = [word for word in small_run if not word.startswith("data.sets.digits.shards")]
    command = [
        "mmscale",
        "train",
        CONFIG,
        *small,
        "data.sets.digits.shards=/absent",
        f"run.dir={tmp_path}/run",
    ]
    ranks = start_two(port, *command, "--preflight")
    complaints = [rank.communicate(timeout=patience(15))[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], complaints
    assert "mmscale: error: preflight: shards:" in complaints[0] and "/absent" in complaints[0]
    assert "Traceback" not in "".join(complaints) and complaints[1].count("mmscale: error") == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [(["--patience", "0"], "--patience"), (["absent.yaml"], "absent.yaml"), ([], "absent0")],
)
def test_bad_input_is_one_line(words, text, capsys, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "absent0")
    with pytest.raises(SystemExit) as left:
        main(["doctor", *words])
    complaint = capsys.readouterr().err
    assert left.value.code == 2 and text in complaint and complaint.count("\n") == 1
