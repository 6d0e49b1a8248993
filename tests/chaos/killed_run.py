"""A run on two ranks with loader workers that is killed at drawn moments, and started again until
it is done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from conftest import ROOT
from patience import patience

from mmscale import prf

_PATIENCE_S = patience(15)  # until a start is where it shall be killed, or has ended by itself
_ORPHANS_S = patience(2)  # until everything that belonged to a killed start is gone
_TARGETS = ("rank 0", "rank 1", "launcher", "loader worker")
_MOMENTS = ("step", "step", "save", "save", "start")


@dataclass
class Process:
    """One process of a start."""

    pid: int
    parent: int
    command: str
    is_loader: bool = False


@dataclass(kw_only=True)
class KilledRun:
    """Kills ``command`` (arguments of ``mmscale``) so often, then lets it end.

    Attributes:
        told: for every kill its moment and target.
        pids: every process that was seen.
    """

    command: list[str]
    run_dir: Path
    scratch: Path
    kills: int
    seed: str
    told: list[tuple[str, str]] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)
    orphans: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._records, self._temporary = self.scratch / "records", self.scratch / "tmp"
        for folder in (self._records, self._temporary):
            folder.mkdir(parents=True)

    def run(self) -> None:
        """All kills, then the start that ends."""
        number = 0
        while len(self.told) < self.kills:
            self._killed_start(number)
            number += 1
            assert number < 3 * self.kills + 3, (
                f"only {len(self.told)} of {number} starts could be killed"
            )
        launcher = self._start(number)
        _, said = launcher.communicate(timeout=patience(60))
        assert launcher.returncode == 0, said[-4000:]
        self._see_it_gone(number)

    def counts(self) -> Counter[tuple[str, str]]:
        """Kills by moment and target."""
        return Counter(self.told)

    def _start(self, number: int) -> subprocess.Popen[str]:
        mark = {"CHAOS_MARK": self._mark(number), "CHAOS_START": str(number)}
        environment = {
            **os.environ, **mark, "CHAOS_RECORD": str(self._records), "TMPDIR":
            str(self._temporary),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'chaos'}", "OMP_NUM_THREADS":
            "1",
            "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
        with open(self.scratch / "said.txt", "a", encoding="utf-8") as said:
            said.write(f"--- start {number}\n")
            said.flush()
            return subprocess.Popen(
                [sys.executable, "-m", *torchrun, "recorded_training", *self.command],
                cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=said, text=True,
                start_new_session=True,
            )  # fmt: skip

    def _killed_start(self, number: int) -> None:
        self._draws = prf.Draws(prf.derive_key("chaos", self.seed, number))
        moment, target = drawn(self._draws)
        delay = 0.1 * float(self._draws.uniforms(1)[0])
        launcher = self._start(number)
        try:
            if self._reach(moment, launcher, number):
                time.sleep(delay if moment == "step" else delay / 4)
                victim = None
                while victim is None and launcher.poll() is None:
                    time.sleep(0.005)  # early in a start it does not exist yet
                    victim = self._find(target, launcher.pid, number)
                if victim is not None and launcher.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                    self.told.append((moment, target))
                    launcher.wait(timeout=_PATIENCE_S)
                    return
            assert launcher.returncode == 0, "a start failed that nobody had killed"
        finally:
            self._see_it_gone(number)

    def _reach(self, moment: str, launcher: subprocess.Popen[str], number: int) -> bool:
        """Wait for the moment; False: the start ended before."""
        if moment == "start":
            time.sleep(0.5 + 4 * float(self._draws.uniforms(1)[0]))
            return launcher.poll() is None
        ahead = self._draws.integer(1, 4)
        limit = time.monotonic() + _PATIENCE_S
        records = [self._records / f"rank-{rank}.jsonl" for rank in (0, 1)]
        before = [_lines(path) for path in records]
        while launcher.poll() is None:
            assert time.monotonic() < limit, f"start {number} does not come to its {moment}"
            begun = all(
                _lines(path) >= was + ahead for path, was in zip(records, before, strict=True)
            )
            if begun and moment == "step":
                return True
            if begun and any((self.run_dir / "checkpoints").glob(".step-*.partial")):
                return True
            time.sleep(0.001)
        return False

    def _find(self, target: str, launcher: int, number: int) -> int | None:
        """A process of the kind; None if there is none yet."""
        found = self._alive(number)
        if target == "launcher":
            return launcher
        if target == "loader worker":
            loaders = sorted(one.pid for one in found if one.is_loader)
            return loaders[self._draws.integer(0, len(loaders))] if loaders else None
        ranks = sorted(
            one.pid
            for one in found
            if one.parent == launcher and "recorded_training" in one.command
        )
        return ranks[int(target[-1])] if len(ranks) == 2 else None

    def _see_it_gone(self, number: int) -> None:
        """Wait for the end of every process of a start; those that stay are noted and killed."""
        limit = time.monotonic() + _ORPHANS_S
        while (left := self._alive(number)) and time.monotonic() < limit:
            time.sleep(0.02)
        for one in left:
            self.orphans.append(f"start {number}, {self.told[-1:]}: {one.command[:200]}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)

    def _alive(self, number: int) -> list[Process]:
        """Processes that carry the start's mark in their environment, whoever their parent is by
        now.
        """
        mark = f"CHAOS_MARK={self._mark(number)}\0".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                if mark not in (entry / "environ").read_bytes() + b"\0":
                    continue
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:
                continue
            if stat[0] not in "ZX":
                found.append(Process(int(entry.name), int(stat[1]), command))
        servers = {one.pid for one in found if "forkserver" in one.command}
        for one in found:
            one.is_loader = one.parent in servers
        self.pids |= {one.pid for one in found}
        return found

    def _mark(self, number: int) -> str:
        return f"{self.scratch}#{number}"


def drawn(draws: prf.Draws) -> tuple[str, str]:
    """Moment and target of a kill."""
    return _MOMENTS[draws.integer(0, len(_MOMENTS))], _TARGETS[draws.integer(0, len(_TARGETS))]


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
