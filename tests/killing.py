"""Starting real runs and killing them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import ROOT
from patience import patience


def metrics(folder: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def kill_when_reached(command: list[str], folder: Path, step: int, ranks: int) -> None:
    """Start ``mmscale`` on some ranks and SIGKILL every process once metrics.jsonl has
    ``step``.

    The ranks do not go far beyond it, however late the kill comes.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    launch = [sys.executable, *torchrun, "-m", "killing", "train_and_wait"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "WAIT_BEFORE": str(step + 2),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    process = subprocess.Popen(
        [*launch, *command], cwd=ROOT, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + patience(20)
        while time.monotonic() < deadline:
            path = folder / "metrics.jsonl"
            if path.exists() and len(path.read_text().splitlines()) > step:
                break
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.02)
        else:
            raise AssertionError(f"step {step} was not reached")
    finally:
        kill_tree(process.pid)
        process.wait()


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants; torchrun gives its ranks sessions of their own."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    doomed, queue = [], [pid]
    while queue:
        doomed.append(queue.pop())
        queue += children.get(doomed[-1], [])
    for descendant in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(descendant, signal.SIGKILL)


def train_and_wait() -> None:
    """``mmscale …`` that stands still at step ``WAIT_BEFORE``, to be killed there."""
    from mmscale.parallel.launcher_watch import end_with_launcher

    end_with_launcher()
    from mmscale.cli import main
    from mmscale.train.metrics import Metrics

    reduce, last = Metrics.reduce, int(os.environ["WAIT_BEFORE"])

    def waiting(self, losses, batches, *more):
        if batches[0].step >= last:
            time.sleep(600)
        return reduce(self, losses, batches, *more)

    Metrics.reduce = waiting  # type: ignore[method-assign]
    main(sys.argv[2:])


def train_without_a_look() -> None:
    """``mmscale train`` whose start does not compare the shards' sizes: as if they broke just after
    it.
    """
    from mmscale.cli import main
    from mmscale.data.index.manifest import Manifest

    Manifest.check_shards = lambda self, added=False: None  # type: ignore[method-assign]
    main(["train", *sys.argv[2:]])


if __name__ == "__main__":
    globals()[sys.argv[1]]()
