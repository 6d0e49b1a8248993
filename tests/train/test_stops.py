"""Being asked to stop, hanging, being slow, being profiled: two real ranks."""

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from checkpoints import weights
from conftest import ROOT, run_module
from killing import metrics
from patience import patience

from mmscale.errors import UserError
from mmscale.parallel.ranks import Ranks
from mmscale.train.run_lock import hold_run

CONFIG = "configs/train/digits.yaml"
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def start(folder, small_run, *overrides, ranks=2, **variables):
    command = [
        sys.executable,
        "-m",
        *(TORCHRUN if ranks > 1 else []),
        "mmscale",
        "train",
        CONFIG,
        *small_run,
    ]
    command += [f"run.dir={folder}", "train.precision=fp32", *overrides]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables},
        start_new_session=True,
    )


def ranks_of(process):
    """Process numbers of the ranks that a launcher started."""
    pids = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parent = int(file.read().rpartition(")")[2].split()[1])
                with open(f"/proc/{entry}/cmdline") as file:
                    command = file.read()
            except OSError:
                continue
            if parent == process.pid and "mmscale" in command:
                pids.append(int(entry))
    return pids


def wait_for_steps(folder, process, count):
    limit = time.monotonic() + patience(20)
    while not (folder / "metrics.jsonl").exists() or len(metrics(folder)) < count:
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < limit, "the run does not begin"
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_next_start_resumes(number, code, tmp_path, small_run):
    """One process, with loader workers; the signal goes to all of its processes, twice."""
    folder = tmp_path / "run"
    overrides = ["train.steps=2000", "data.workers=1", "train.checkpoint_every=2000"]
    traced = ["train.profile_steps=4-1999"] if number == signal.SIGTERM else []
    process = start(folder, small_run, *overrides, *traced, ranks=1)
    wait_for_steps(folder, process, 5)
    os.killpg(process.pid, number)
    if number != signal.SIGINT:  # twice at the keyboard means at once
        os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=patience(10))
    assert process.returncode == code, errors
    assert "stopped on request after step" in errors
    assert (folder / "profile" / "rank-0.json.gz").is_file() == bool(traced), (
        "what was traced until then"
    )
    done = len(metrics(folder))
    (saved,) = (folder / "checkpoints").glob("step-*")
    assert int(saved.name[5:]) == done < 2000
    again = [f"train.steps={done + 3}", *overrides[1:], "train.optimizer.schedule=constant"]
    run_module(
        [
            "mmscale",
            "train",
            CONFIG,
            *small_run,
            f"run.dir={folder}",
            "train.precision=fp32",
            *again,
        ]
    )
    assert [row["step"] for row in metrics(folder)] == list(range(done + 3))


def test_one_rank_is_signalled_and_both_stop_after_the_same_step(tmp_path, small_run):
    """The resumed run ends with the weights of the undisturbed one."""
    reference, folder = tmp_path / "reference", tmp_path / "run"
    process = start(folder, small_run, "train.steps=40", "train.checkpoint_every=100")
    wait_for_steps(folder, process, 4)
    os.kill(ranks_of(process)[1], signal.SIGUSR1)
    _, errors = process.communicate(timeout=patience(10))
    assert process.returncode != 0 and "stopped on request" in errors, errors
    (saved,) = (folder / "checkpoints").glob("step-*")
    assert len(json.loads((saved / "state.json").read_text())["files"]) == 2
    for where in (folder, reference):
        arguments = [
            "mmscale",
            "train",
            CONFIG,
            *small_run,
            f"run.dir={where}",
            "train.precision=fp32",
        ]
        run_module([*arguments, "train.steps=40", "train.checkpoint_every=100"], ranks=2)
    ours, theirs = weights(folder), weights(reference)
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    rows = metrics(folder)
    assert [row["step"] for row in rows] == list(range(40))
    assert all(len(row["rank_work_s"]) == 2 and min(row["rank_work_s"]) > 0 for row in rows)


def test_a_second_start_in_the_folder_waits_and_continues_when_the_first_is_gone(
    tmp_path, small_run
):
    """It must not clean up or write among the first one's checkpoints; a third that does not wait
    is refused.
    """
    folder, many = tmp_path / "run", ["train.steps=2000", "train.checkpoint_every=10"]
    first = start(folder, small_run, *many)
    wait_for_steps(folder, first, 12)
    holder = ranks_of(first)
    second = start(folder, small_run, *many[:1], "train.checkpoint_every=2000")
    try:
        waits = next(line for line in second.stderr if "another run trains in it" in line)
        assert any(f"process {pid})" in waits for pid in holder) and "waiting 120 s" in waits
        alone = Ranks(rank=0, world=1, local_rank=0, local_world=1, device=torch.device("cpu"))
        refused = pytest.raises(UserError, match="stop that one, or choose another folder")
        with refused, hold_run(folder, alone, patience_s=0.1):
            raise AssertionError("both train")
        assert first.poll() is None and second.poll() is None
        before = len(metrics(folder))
        os.killpg(first.pid, signal.SIGKILL)
        for pid in holder:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        first.communicate(timeout=patience(10))
        limit = time.monotonic() + patience(20)
        while len(metrics(folder)) < before + 15:
            assert second.poll() is None and time.monotonic() < limit, second.stderr.read()[-3000:]
            time.sleep(0.05)
        rows = [row["step"] for row in metrics(folder)]
        assert rows == list(range(len(rows)))
    finally:
        for process in (first, second):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=patience(10))
    with hold_run(folder, alone, patience_s=patience(1)):
        pass


def test_a_rank_that_hangs_ends_the_run_with_rank_and_collective_named(tmp_path, small_run):
    folder = tmp_path / "run"
    # Waited for in full, but ten times what one rank of a busy machine is behind the other.
    process = start(folder, small_run, "train.steps=2000", "parallel.timeout_s=30")
    wait_for_steps(folder, process, 3)
    hung = ranks_of(process)[1]
    os.kill(hung, signal.SIGSTOP)
    try:
        line = next(line for line in process.stderr if "longer than parallel.timeout_s=30" in line)
    finally:
        os.kill(hung, signal.SIGCONT)
        process.communicate(timeout=patience(10))
    assert "rank 0 waited in gloo:" in line and "of group" in line
    record = json.loads((folder / "hang" / "rank-0.json").read_text())
    assert record[-1]["profiling_name"] in line
    assert process.returncode not in (0, None)


def test_steps_are_profiled(tmp_path, small_run):
    arguments = ["mmscale", "train", CONFIG, *small_run, f"run.dir={tmp_path}", "train.steps=4"]
    run_module([*arguments, "train.profile_steps=1-2"], ranks=2)
    for rank in (0, 1):
        trace = json.loads(
            gzip.decompress((tmp_path / "profile" / f"rank-{rank}.json.gz").read_bytes())
        )
        assert any("aten::mm" in event.get("name", "") for event in trace["traceEvents"])
    done = run_module([*arguments, "train.profile_steps=ten"], check=False)
    assert done.returncode == 2 and "train.profile_steps: ten: write A-B" in done.stderr
    done = run_module([*arguments, "train.profile_steps=900-902"], check=False)
    assert (
        done.returncode == 2
        and "train.profile_steps: 900-902: the run's last step is" in done.stderr
    )


def test_a_slow_rank_is_named(capfd):
    import torch
    from small_run import one_rank

    from mmscale.parallel.ranks import Ranks
    from mmscale.train.straggler import RankTimes

    with one_rank():
        times = RankTimes(
            Ranks(rank=0, world=1, local_rank=0, local_world=1, device=torch.device("cpu"))
        )
    times._ranks, times._hosts = (
        Ranks(rank=0, world=3, local_rank=0, local_world=1, device=torch.device("cpu")),
        ["a", "b", "c"],
    )
    times._work, times._wait = (
        [type(times._work[0])(maxlen=20) for _ in range(3)] for _ in range(2)
    )
    for step in range(30):
        times.watch(step, work_s=[1.0, 1.1, 1.7], wait_s=[0.0, 0.0, 0.0])
    errors = capfd.readouterr().err
    assert (
        errors.count("warning") == 1
        and "rank 2 (c) works 1.700 s per step, the median rank 1.100 s" in errors
    )
