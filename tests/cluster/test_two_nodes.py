"""Two machines, as network namespaces: every launcher trains across them, and a job outlives a lost
one.

Needs root, ``ip`` and ``unshare`` (Debian: iproute2, util-linux). Run by ``make test-cluster``, not
by ``make test``.
"""

import contextlib
import os
import signal
import struct
import sys
import time
from pathlib import Path

import pytest
from checkpoints import weights
from conftest import ROOT, run_module
from curves import as_if_nothing_had_happened
from killing import metrics
from namespaces import INTERFACE, two_nodes
from patience import patience

CONFIG = "configs/train/digits.yaml"
# Sums of one rounding, on one machine and on two.
SAME = ("train.precision=fp32", "parallel.threads=1")
LIMIT = patience(30)  # seconds until a test gives up


@pytest.fixture(scope="module")
def nodes():
    with two_nodes() as pair:
        yield pair


@pytest.fixture(autouse=True)
def nothing_runs_on(nodes):
    """A test begins with whole, idle machines."""
    for node in nodes:
        node.kill()
        node.cable("up")


def train(nodes, folder, small_run, script, *overrides, before=(), **variables):
    """Start a launch script on some of the machines; the first has the meeting point. Returns the
    processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [CONFIG, *small_run, f"run.dir={folder}/run", *SAME, *overrides]
    common = {
        "NNODES": str(len(nodes)), "MASTER_ADDR": "10.77.0.1", "NETWORK_INTERFACE": INTERFACE,
        "RANKS_PER_NODE": "1",
        "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    return [
        node.start(
            ["bash", f"launch/{script}", *before, *arguments], folder / f"{node.address}.log",
            **common | {"NODE_RANK": str(int(node.address[-1]) - 1)} | variables,
        )
        for node in nodes
    ]  # fmt: skip


def finish(processes, folder):
    """Wait for all machines' part of a job to end well."""
    for number, process in enumerate(processes, start=1):
        code = process.wait(LIMIT)
        assert code == 0, (folder / f"10.77.0.{number}.log").read_text()[-3000:]


def rows(folder):
    path = folder / "run" / "metrics.jsonl"
    return metrics(folder / "run") if path.exists() else []


def wait(folder, done):
    """Until ``done`` is true of the metrics' rows."""
    deadline = time.monotonic() + LIMIT
    while not done(rows(folder)):
        logs = {path.name: path.read_text()[-3000:] for path in folder.glob("*.log")}
        assert time.monotonic() < deadline, (rows(folder)[-1:], logs)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def one_machine(small_run, tmp_path_factory):
    """Makes (once for each) the run of two ranks of one machine that a strategy's other runs are
    compared with.
    """
    made = {}

    def make(*overrides):
        if overrides not in made:
            folder = made[overrides] = tmp_path_factory.mktemp("reference")
            command = [
                "mmscale",
                "train",
                CONFIG,
                *small_run,
                f"run.dir={folder}/run",
                "train.precision=fp32",
            ]
            run_module([*command, *overrides], ranks=2)
        return made[overrides]

    return make


@pytest.mark.parametrize(
    ("script", "before", "strategy"),
    [
        ("torchrun.sh", (), "fsdp"),
        ("accelerate.sh", ("multi-node",), "fsdp"),
        ("accelerate.sh", ("ddp",), "ddp"),
        ("deepspeed.sh", (), "zero2"),
    ],
)
def test_launchers_train_across_machines(
    nodes, tmp_path, small_run, one_machine, script, before, strategy
):
    """Bit for bit what two ranks of one machine learn."""
    finish(train(nodes, tmp_path, small_run, script, "train.steps=4", before=before), tmp_path)
    assert [(row["step"], row["ranks"]) for row in rows(tmp_path)] == [
        (step, 2) for step in range(4)
    ]
    reference = one_machine("train.steps=4", f"parallel.strategy={strategy}")
    ours, theirs = weights(tmp_path / "run"), weights(reference / "run")
    assert ours.keys() == theirs.keys() and all(
        (ours[name] == theirs[name]).all() for name in theirs
    )


def test_the_preflight_names_the_machine_nobody_reaches(nodes, tmp_path, small_run):
    """One machine was told to use an interface that leads nowhere; no run begins."""
    first, second = nodes
    (job,) = train([first], tmp_path, small_run, "torchrun.sh", NNODES="2", MAX_RESTARTS="0")
    (other,) = train(
        [second],
        tmp_path,
        small_run,
        "torchrun.sh",
        NNODES="2",
        MAX_RESTARTS="0",
        NETWORK_INTERFACE="lo",
    )
    assert job.wait(LIMIT) != 0 and other.wait(LIMIT) != 0
    told = (tmp_path / f"{first.address}.log").read_text()
    assert f"preflight: network: {first.name} does not reach {second.name}: 127.0.0.1" in told
    assert not (tmp_path / "run").exists()


LONG = ("train.steps=24", "train.checkpoint_every=5")


def rank_of(node):
    """Process of the one rank that trains on ``node``."""
    for pid in node.pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if (
                b"mmscale" in words
                and b"torch.distributed.run" not in words
                and b"RANK=" in Path(f"/proc/{pid}/environ").read_bytes()
            ):
                return pid
    raise AssertionError(f"{node.name}: no rank is running")


def signal_waits(pid, number):
    """Whether a signal was sent to a stopped process and waits for it to go on."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("ShdPnd:")[2].split()[0], 16) >> (number - 1) & 1)


def until_both_train(folder, first, back):
    """While one machine trains alone, pause its rank, so that the job does not end too early; call
    ``back``, which brings the other machine back; go on once the launcher asks the rank to save and
    make room."""
    wait(folder, lambda rows: rows and rows[-1]["ranks"] == 1)
    alone = rank_of(first)
    os.kill(alone, signal.SIGSTOP)
    processes = back()
    wait(folder, lambda rows: signal_waits(alone, signal.SIGTERM))
    os.kill(alone, signal.SIGCONT)
    return processes


def with_two_with_one_with_two(folder):
    counts = [row["ranks"] for row in rows(folder)]
    assert counts == sorted(counts[: counts.index(1)], reverse=True) + sorted(
        counts[counts.index(1) :]
    )
    assert counts[0] == counts[-1] == 2


def test_a_machine_is_lost_and_returns(nodes, tmp_path, small_run, one_machine):
    """NNODES=1:2. One machine loses its power: the other goes on alone. It returns: both go on."""
    first, second = nodes
    job, _ = train(nodes, tmp_path, small_run, "torchrun.sh", *LONG, NNODES="1:2")
    wait(tmp_path, lambda rows: len(rows) >= 8)
    second.kill()
    back = until_both_train(
        tmp_path,
        first,
        lambda: train([second], tmp_path, small_run, "torchrun.sh", *LONG, NNODES="1:2"),
    )
    finish([job, *back], tmp_path)
    with_two_with_one_with_two(tmp_path)
    as_if_nothing_had_happened(tmp_path / "run", one_machine(*LONG) / "run")


def test_a_cable_is_cut_and_mended(nodes, tmp_path, small_run, one_machine):
    """No machine dies, but they no longer hear each other: the one that keeps the meeting point
    goes on alone, the other trains nothing beside it, and joins again by itself when the cable is
    mended."""
    first, second = nodes
    overrides = (*LONG, "parallel.timeout_s=15")
    jobs = train(nodes, tmp_path, small_run, "torchrun.sh", *overrides, NNODES="1:2")
    wait(tmp_path, lambda rows: len(rows) >= 8)
    second.cable("down")
    until_both_train(tmp_path, first, lambda: second.cable("up"))
    finish(jobs, tmp_path)
    with_two_with_one_with_two(tmp_path)
    as_if_nothing_had_happened(tmp_path / "run", one_machine(*LONG) / "run")


PORT = "8099"  # of each machine's own server, under one address


def serve(node, shards, folder):
    """What stands for a bucket, on ``node``; counts what this machine is sent."""
    counts = folder / f"{node.name}.counts"
    if not counts.exists():
        counts.write_bytes(bytes(4 * 8))
    command = [
        sys.executable, str(ROOT / "tools" / "bench_streaming_server.py"), str(shards), PORT,
        str(counts), "{}",
    ]  # fmt: skip
    log = folder / f"{node.name}.server.log"
    process = node.start(command, log)
    deadline = time.monotonic() + LIMIT
    while b"ready" not in log.read_bytes():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    log.write_bytes(b"")
    return counts


def test_machines_with_caches_of_their_own_and_one_that_returns(
    nodes, tmp_path, small_run, small_digits, one_machine
):
    """The set lies on a server. Each machine fetches its own lanes, once; the one that was lost has
    its disk still when it returns. Samples and curve are those of local shards.
    """
    first, second = nodes
    shards = small_digits / "train"
    counts = [serve(node, shards, tmp_path) for node in nodes]
    # Small blocks, so that the machines read different ones.
    order = ("data.block=2", "data.group_blocks=8")
    remote = (*LONG, *order, f"data.sets.digits.shards=[http://127.0.0.1:{PORT}]")

    def begin(node):
        return train(
            [node], tmp_path, small_run, "torchrun.sh", *remote, NNODES="1:2",
            MMSCALE_CACHE=str(tmp_path / f"{node.name}.cache"),
        )  # fmt: skip

    (job,), _ = begin(first), begin(second)
    wait(tmp_path, lambda rows: len(rows) >= 8)
    second.kill()
    before = sent(counts[1])

    def return_():
        serve(second, shards, tmp_path)
        return begin(second)

    back = until_both_train(tmp_path, first, return_)
    finish([job, *back], tmp_path)
    with_two_with_one_with_two(tmp_path)
    as_if_nothing_had_happened(tmp_path / "run", one_machine(*LONG, *order) / "run")
    whole = sum(path.stat().st_size for path in shards.glob("*.tar"))
    assert 0 < before < whole and all(0 < sent(path) <= whole for path in counts)
    kept = [
        sum(path.stat().st_size for path in (tmp_path / f"{node.name}.cache").glob("blocks/??/*"))
        for node in nodes
    ]
    # What is on a disk was fetched once; each start looks at the beginning of a shard besides.
    assert all(0 <= sent(path) - size <= 4 * 512 for path, size in zip(counts, kept, strict=True))


def sent(counts):
    """Bytes of shards that a server has sent."""
    return struct.unpack("<4q", counts.read_bytes())[1]
