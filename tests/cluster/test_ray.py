"""A real Ray cluster on this machine, a head and two workers: launch/ray/submit.sh trains and
tunes, nodes are killed.

Needs ``mmscale[ray]``. Run by ``make test-cluster``, not by ``make test``.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import weights
from conftest import ROOT
from killing import kill_tree, metrics
from patience import patience

pytest.importorskip("ray")
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
STEPS = 40


class Cluster:
    """A head without CPUs and nodes of one CPU each, all processes of this machine."""

    def __init__(self, folder: Path) -> None:
        token = folder / "token"
        token.write_text("0123456789abcdef" * 4)
        token.chmod(0o600)
        self.port, self.dashboard = free_port(), free_port()
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PYTHON": sys.executable,
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard}", "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "RAY_health_check_period_ms":
            "1000",
            "RAY_health_check_timeout_ms": "5000", "RAY_health_check_failure_threshold": "3",
        }  # fmt: skip
        self.environment.pop("RAY_ADDRESS", None)
        self.head = self._start(
            "--head", f"--port={self.port}", "--num-cpus=0", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard}", "--include-dashboard=true",
        )  # fmt: skip
        self.nodes: list[subprocess.Popen] = []
        self.wait_for_dashboard()

    def _start(self, *arguments: str) -> subprocess.Popen:
        # by default all nodes of a machine want the same
        own = f"--dashboard-agent-listen-port={free_port()}"
        return subprocess.Popen(
            [*RAY, "start", "--block", "--object-store-memory=100000000", "--disable-usage-stats",
            own, *arguments],
            env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def add_node(self) -> None:
        """Start one, and wait for it: nodes of one machine that start at once can take each other's
        ports, and die.
        """
        deadline = time.monotonic() + patience(12)
        while self._alive() > 1 + len(self.nodes):
            assert time.monotonic() < deadline, "a killed node is not missed"
        node = self._start(f"--address=127.0.0.1:{self.port}", "--num-cpus=1")
        while self._alive() < 2 + len(self.nodes):
            assert time.monotonic() < deadline, "the node does not join"
            if node.poll() is not None:
                node = self._start(f"--address=127.0.0.1:{self.port}", "--num-cpus=1")
            time.sleep(0.5)
        self.nodes.append(node)

    def _alive(self) -> int:
        """How many nodes the cluster has, the head among them."""
        command = [*RAY, "list", "nodes", "--format", "json", "--filter", "state=ALIVE"]
        for _ in range(10):  # the dashboard may not answer yet, nor the head be known
            listed = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, check=False
            )
            if listed.returncode == 0 and listed.stdout.startswith("["):
                return len(json.loads(listed.stdout))
        raise AssertionError(listed.stdout + listed.stderr)

    def kill_node(self) -> None:
        """The newest one, whole, as a power failure does."""
        node = self.nodes.pop()
        kill_tree(node.pid)
        node.wait()

    def wait_for_dashboard(self) -> None:
        deadline = time.monotonic() + patience(12)
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.dashboard), 1):
                    return
            except OSError:
                assert time.monotonic() < deadline and self.head.poll() is None, (
                    "the head does not come up"
                )
                time.sleep(0.2)

    def wait_for_jobs(self) -> None:
        """Until one is taken; a new head has no agent for them yet."""
        command = [
            *RAY,
            "job",
            "submit",
            "--address",
            self.environment["RAY_API_SERVER_ADDRESS"],
            "--",
            "true",
        ]
        for _ in range(30):
            done = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return
            time.sleep(1.0)
        raise AssertionError(done.stderr)

    def submit(self, *arguments: str, **variables: str) -> subprocess.Popen:
        """Hand a job in and follow it."""
        return subprocess.Popen(
            ["bash", "launch/ray/submit.sh", *arguments], cwd=ROOT, env=self.environment |
            variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def stop(self) -> None:
        for process in (*self.nodes, self.head):
            kill_tree(process.pid)
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("ray"))
    try:
        made.add_node()
        made.add_node()
        made.wait_for_jobs()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def reference(small_run, tmp_path_factory):
    """The same training by torchrun, undisturbed."""
    folder = tmp_path_factory.mktemp("reference")
    subprocess.run(
        [sys.executable, "-m", "mmscale", "train", *run(folder, small_run), "--ranks", "2"],
        cwd=ROOT, check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
    )  # fmt: skip
    return folder


def run(folder, small_run, *overrides):
    return [
        "configs/train/digits.yaml", *small_run, f"run.dir={folder}", "train.precision=fp32",
        "parallel.threads=1",
        f"train.steps={STEPS}", "train.checkpoint_every=10", "parallel.strategy=ddp", *overrides,
    ]  # fmt: skip


def finish(process, needs=30):
    told, _ = process.communicate(timeout=patience(needs))
    assert process.returncode == 0, told[-4000:]
    return told


def wait_for(condition, process, needs=30):
    deadline = time.monotonic() + patience(needs)
    while not condition():
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0][-4000:])
        assert time.monotonic() < deadline
        time.sleep(0.1)


def steps(folder):
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def same(folder, reference):
    assert [row["step"] for row in metrics(folder)] == list(range(STEPS))
    ours, theirs = weights(folder), weights(reference)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_submitted_run_ends_in_the_weights_of_torchrun(cluster, reference, small_run, tmp_path):
    told = finish(cluster.submit("train", *run(tmp_path, small_run), RANKS="2"))
    assert f"{STEPS} steps" in told
    same(tmp_path, reference)
    assert {row["ranks"] for row in metrics(tmp_path)} == {2}


def test_a_killed_node_leaves_the_other_to_go_on(cluster, reference, small_run, tmp_path):
    """One or two ranks: the run goes on with one, and its batches are those of two."""
    job = cluster.submit("train", *run(tmp_path, small_run), RANKS="1:2")
    try:
        wait_for(lambda: steps(tmp_path) >= 12, job)
        cluster.kill_node()
        finish(job)
    finally:
        cluster.add_node()
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert rows[0]["ranks"] == 2 and rows[-1]["ranks"] == 1
    undisturbed = metrics(reference)
    assert all(
        abs(row["loss"] / other["loss"] - 1) < 1e-4
        for row, other in zip(rows, undisturbed, strict=True)
    )


def search(folder, small_run):
    # Rates that do not make a difference of rounding grow.
    space = "tune.space={train.optimizer.lr: {range: [1.0e-4, 1.0e-2], scale: log}}"
    return [
        *run(folder, small_run, "train.checkpoint_every=100"), space, "tune.trials=3",
        "tune.search=random",
        "tune.scheduler=asha", "tune.first_stop=10", "tune.reduction=2",
    ]  # fmt: skip


def read_scores(folder):
    rows = [
        json.loads(line)
        for line in (folder / "tune.jsonl").read_text().splitlines()
        if line.endswith("}")
    ]
    return {
        (row["number"], row["step"]): row["score"] for row in rows if row.get("event") == "score"
    }


def told_scores(folder, count):
    return (folder / "tune.jsonl").exists() and len(read_scores(folder)) >= count


def test_a_search_outlives_a_killed_node_and_a_killed_driver(cluster, small_run, tmp_path):
    job = cluster.submit("tune", *search(tmp_path, small_run))
    wait_for(lambda: told_scores(tmp_path, 1), job)
    cluster.kill_node()
    wait_for(lambda: told_scores(tmp_path, 2), job)
    # The driver runs on the head: killed, its job fails, and --resume goes on.
    drivers = subprocess.run(
        ["pgrep", "-f", f"mmscale tune .*{tmp_path}"], capture_output=True, text=True, check=True
    )
    for pid in drivers.stdout.split():
        with contextlib.suppress(OSError):  # it has ended
            if b"submit" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(int(pid), signal.SIGKILL)
    job.communicate(timeout=patience(12))
    assert job.returncode != 0
    cluster.add_node()
    before = read_scores(tmp_path)
    told = finish(cluster.submit("tune", *search(tmp_path, small_run), "--resume"))
    after = read_scores(tmp_path)
    assert before.items() <= after.items() and "best: trial-" in told
    assert {number for number, _ in after} == {0, 1, 2} and (tmp_path / "best.yaml").is_file()


def test_trials_of_two_workers_score_as_trials_of_one(cluster, small_run, tmp_path):
    folders = [tmp_path / "two", tmp_path / "one"]
    for folder, workers in zip(folders, "21", strict=True):
        short = [
            *search(folder, small_run),
            "tune.trials=2",
            "train.steps=20",
            f"tune.workers={workers}",
            "ray.cpus=0.4",
        ]
        finish(cluster.submit("tune", *short))
    two, one = map(read_scores, folders)
    shared = two.keys() & one.keys()
    assert shared >= {(0, 10), (1, 10)}
    assert all(abs(two[key] / one[key] - 1) < 1e-3 for key in shared)
