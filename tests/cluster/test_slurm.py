"""A real Slurm on this machine, two virtual nodes: launch/slurm.sbatch trains, is requeued, ends in
the same weights.

Needs root and Debian's ``slurm-wlm`` and ``munge`` (apt-get install --no-install-recommends
slurm-wlm munge). Run by ``make test-cluster``, not by ``make test``.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import weights
from conftest import ROOT
from killing import metrics
from patience import patience

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=20
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
SlurmdTimeout=9
KillWait=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=2 RealMemory=4000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=first Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Environment of a running cluster; stopped by its pid files."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(
            f"needs root and {', '.join(missing) or 'nothing else'}: apt-get install slurm-wlm "
            "munge"
        )
    folder = Path(tmp_path_factory.mktemp("slurm"))
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=socket.gethostname()))
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(*command):
        subprocess.run(command, env=environment, check=True, timeout=patience(5))

    start(
        "munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid",
        f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
    )  # fmt: skip
    start("slurmctld")
    for node in ("n1", "n2"):
        start("slurmd", "-N", node)
    try:
        yield environment | {"SLURM_FOLDER": str(folder)}
    finally:
        for name in ("slurmd-n1", "slurmd-n2", "slurmctld", "munged"):
            path = folder / f"{name}.pid"
            if path.exists():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(
                        int(path.read_text()),
                        signal.SIGKILL if name.startswith("slurmd") else signal.SIGTERM,
                    )


def _told(slurm, *command):
    return subprocess.run(command, env=slurm, capture_output=True, text=True, check=False).stdout


def submit(slurm, folder, small_run, *overrides):
    """Job number of a training over both nodes, one rank each."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience(5)
    while set(_told(slurm, "sinfo", "--noheader", "--Node", "--format=%T").split()) != {"idle"}:
        assert time.monotonic() < deadline, _told(slurm, "sinfo", "--Node", "--long")
        time.sleep(0.2)
    variables = slurm | {
        "RANKS_PER_NODE": "1", "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [
        "sbatch",
        "--parsable",
        "--nodes=2",
        "--cpus-per-task=1",
        f"--output={folder}/job.log",
    ]
    run = [
        "configs/train/digits.yaml",
        *small_run,
        f"run.dir={folder}/run",
        "train.precision=fp32",
        "parallel.threads=1",
        *overrides,
    ]
    done = subprocess.run(
        [*command, "launch/slurm.sbatch", *run],
        env=variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().partition(";")[0]


def state(slurm, job):
    told = _told(slurm, "scontrol", "show", "job", job)
    return told.partition("JobState=")[2].split(" ")[0], told


def wait(slurm, folder, job, done, needs=30):
    deadline = time.monotonic() + patience(needs)
    while not done():
        log = folder / "job.log"
        assert time.monotonic() < deadline, (
            state(slurm, job)[1],
            log.read_text()[-3000:] if log.exists() else "no log",
        )
        time.sleep(0.2)


def steps(folder):
    path = folder / "run" / "metrics.jsonl"
    return len(metrics(folder / "run")) if path.exists() else 0


OVERRIDES = ("train.steps=40", "train.checkpoint_every=10")


@pytest.fixture(scope="module")
def reference(slurm, small_run, tmp_path_factory):
    """An undisturbed job."""
    folder = tmp_path_factory.mktemp("reference")
    job = submit(slurm, folder, small_run, *OVERRIDES)
    wait(slurm, folder, job, lambda: state(slurm, job)[0] in ("COMPLETED", "FAILED"))
    assert state(slurm, job)[0] == "COMPLETED", (folder / "job.log").read_text()[-3000:]
    rows = metrics(folder / "run")
    assert [row["step"] for row in rows] == list(range(40)) and all(
        row["ranks"] == 2 for row in rows
    )
    return folder


def same(folder, reference):
    ours, theirs = weights(folder / "run"), weights(reference / "run")
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert [row["step"] for row in metrics(folder / "run")] == list(range(40))


def test_told_before_the_limit_saves_and_requeues_itself(slurm, small_run, tmp_path, reference):
    job = submit(slurm, tmp_path, small_run, *OVERRIDES)
    wait(slurm, tmp_path, job, lambda: steps(tmp_path) >= 5)
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=slurm, check=True)
    log = tmp_path / "job.log"
    wait(slurm, tmp_path, job, lambda: "requeued" in log.read_text())
    assert list((tmp_path / "run" / "checkpoints").glob("step-*")), "saved when it was told"
    wait(slurm, tmp_path, job, lambda: state(slurm, job)[0] == "COMPLETED")
    assert "Restarts=1" in state(slurm, job)[1]
    same(tmp_path, reference)


def test_a_preemption_by_sigterm_saves_and_requeues(slurm, small_run, tmp_path, reference):
    """Without preempt_send_user_signal the ranks alone are told."""
    job = submit(slurm, tmp_path, small_run, *OVERRIDES)
    wait(slurm, tmp_path, job, lambda: steps(tmp_path) >= 5)
    other = [
        "sbatch",
        "--partition=first",
        "--nodes=2",
        "--exclusive",
        f"--output={tmp_path}/other.log",
    ]
    subprocess.run(
        [*other, "--wrap=true"], env=slurm, check=True, cwd=tmp_path, capture_output=True
    )
    log = tmp_path / "job.log"
    wait(slurm, tmp_path, job, lambda: "slurm.sbatch: told to stop" in log.read_text())
    assert list((tmp_path / "run" / "checkpoints").glob("step-*")), "saved when it was told"
    wait(slurm, tmp_path, job, lambda: state(slurm, job)[0] in ("COMPLETED", "FAILED"))
    assert state(slurm, job)[0] == "COMPLETED" and "Restarts=1" in state(slurm, job)[1]
    same(tmp_path, reference)


def test_a_cancelled_job_stays_cancelled(slurm, small_run, tmp_path):
    job = submit(slurm, tmp_path, small_run, "train.steps=1000")
    wait(slurm, tmp_path, job, lambda: steps(tmp_path) >= 5)
    subprocess.run(["scancel", job], env=slurm, check=True)
    wait(slurm, tmp_path, job, lambda: not _told(slurm, "squeue", "--noheader"))
    assert state(slurm, job)[0] == "CANCELLED" and "Restarts=0" in state(slurm, job)[1]
    assert "requeued" not in (tmp_path / "job.log").read_text()


def test_a_killed_rank_is_started_again(slurm, small_run, tmp_path, reference):
    """SIGKILL of a rank: torchrun starts both again, from the last checkpoint."""
    job = submit(slurm, tmp_path, small_run, *OVERRIDES)
    wait(slurm, tmp_path, job, lambda: steps(tmp_path) >= 15)
    ranks = subprocess.run(
        ["pgrep", "-f", f"mmscale train.*{tmp_path}/run"],
        capture_output=True,
        text=True,
        check=True,
    )
    commands = {
        int(pid): Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        for pid in ranks.stdout.split()
    }
    victim = next(
        pid
        for pid, words in commands.items()
        if "torch.distributed.run" not in words and "mmscale" in words
    )
    os.kill(victim, signal.SIGKILL)
    wait(slurm, tmp_path, job, lambda: state(slurm, job)[0] in ("COMPLETED", "FAILED"))
    assert state(slurm, job)[0] == "COMPLETED", (tmp_path / "job.log").read_text()[-3000:]
    same(tmp_path, reference)


def pids_of_node(node):
    """Everything a job runs on a virtual node, and what runs it."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if f"SLURMD_NODENAME={node}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if "slurmstepd" in Path(f"/proc/{parent}/cmdline").read_text():
                    found.add(parent)
                found.add(int(entry.name))
    return found


def test_a_lost_node_is_waited_for(slurm, small_run, tmp_path, reference):
    """A node without power: Slurm notices, puts the job back in the queue, and starts it when there
    are two again.
    """
    job = submit(slurm, tmp_path, small_run, *OVERRIDES)
    wait(slurm, tmp_path, job, lambda: steps(tmp_path) >= 15)
    daemon = int((Path(slurm["SLURM_FOLDER"]) / "slurmd-n2.pid").read_text())
    for pid in {daemon, *pids_of_node("n2")}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        wait(slurm, tmp_path, job, lambda: "Restarts=1" in state(slurm, job)[1])
        wait(slurm, tmp_path, job, lambda: state(slurm, job)[0] == "PENDING")
    finally:
        subprocess.run(["slurmd", "-N", "n2"], env=slurm, check=True, timeout=patience(5))
    wait(slurm, tmp_path, job, lambda: state(slurm, job)[0] in ("COMPLETED", "FAILED"))
    assert state(slurm, job)[0] == "COMPLETED", (tmp_path / "job.log").read_text()[-3000:]
    same(tmp_path, reference)


def test_nothing_is_left(slurm):
    """No rank outlives its job."""
    left = subprocess.run(
        ["pgrep", "-af", "mmscale train"], capture_output=True, text=True, check=False
    ).stdout
    assert str(Path(slurm["SLURM_FOLDER"]).parent) not in left
