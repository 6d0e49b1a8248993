"""Parts 4 and 5 of `bench_streaming`: a source that is slow, unsteady or dead, and a fresh start.

What a step must wait for follows from arithmetic: its bytes have arrived when all bytes that are
first needed until then have, one after another at the source's rate. The same sum is done for the
steps that were measured, so that a wait is shown beside the one that nothing could have avoided.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_streaming_http import HERE, SETTINGS
from bench_streaming_run import STEPS_IN_EPOCH, StreamedRun
from bench_streaming_server import Server, Source
from bench_streaming_shards import config_of, tokenizer_file, write_set
from numpy.typing import NDArray

from mmscale.config_file import dump_config
from mmscale.data.planning.step_plan import Plan
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

SAMPLES, SAMPLE_BYTES, SHARDS = 16_384, 100_000, 128
STEP_S = 0.8
FIRST_STEPS = 10  # that are not counted: nothing can have been fetched ahead of them
DEAD_S, DEAD_AFTER_S = 20.0, 60.0
LATENCY_S, SPIKE_S = 0.05, 2.0
CACHE = 0.6  # of the set


@dataclass(frozen=True, kw_only=True)
class Waited:
    """Shares of the time after the first ten steps.

    Attributes:
        source: what was slow.
        share: that steps waited for data.
        least: that they had to, by arithmetic.
        longest_s: of one step.
    """

    source: str
    share: float
    least: float
    longest_s: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class Started:
    """A fresh machine's first step; bytes as shares of the set.

    Attributes:
        wait_s: from the model's being built to the first batch.
        first_step: bytes that the first step reads.
        besides: other bytes of the shards that were fetched before it was over.
        index: bytes of the index.
    """

    wait_s: float
    first_step: float
    besides: float
    index: float
    set_bytes: int
    shards: int


class SlowSources:
    """A set of 1.6 GB, and runs that read it, in ``folder``."""

    def __init__(self, folder: Path, samples: int = SAMPLES) -> None:
        self._folder = folder
        self._web = folder / "slow"
        self._tars = self._web / "tars"
        write_set(self._tars, samples=samples, sample_bytes=SAMPLE_BYTES, shards=SHARDS)
        self.bytes = sum(path.stat().st_size for path in self._tars.glob("*.tar"))
        server = Server(self._web, folder / "counts-plan")
        try:
            self._new = self._new_bytes(f"http://{server.address}/tars/")
        finally:
            server.close()

    def throttled(self, share: float, *, spikes: bool) -> Waited:
        """With a source of ``share`` times the rate that training needs."""
        rate = share * float(self._new.sum()) / len(self._new) / STEP_S
        source = Source(rate=rate, latency_s=LATENCY_S, spike_s=SPIKE_S if spikes else 0.0)
        name = f"{share:g} times what is needed, {LATENCY_S * 1e3:.0f} ms"
        return self._measure(name + (", 2 s a minute silent" if spikes else ""), source)

    def dying(self) -> Waited:
        """With a source of twice the rate, which is dead for a while."""
        rate = 2 * float(self._new.sum()) / len(self._new) / STEP_S
        source = Source(rate=rate, latency_s=LATENCY_S)
        return self._measure(f"twice what is needed, dead for {DEAD_S:.0f} s", source, dies=True)

    def fresh_start(self) -> Started:
        """One step of a training run with an empty cache."""
        server = Server(self._web, self._folder / "counts-start")
        run = self._folder / "run"
        try:
            config = config_of(f"http://{server.address}/tars/", tokenizer_file(self._tars))
            config.data.cache.dir = str(self._folder / "cache-start")
            for name, value in SETTINGS.items():
                setattr(config.data, name, value)
            config.run.dir, config.train.steps = str(run), 1
            (self._folder / "start.yaml").write_text(dump_config(config), encoding="utf-8")
            command = [sys.executable, "-m", "mmscale", "train", str(self._folder / "start.yaml")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(f"mmscale train: {done.stderr.strip().splitlines()[-1]}")
            counts = server.counts()
        finally:
            server.close()
        with open(run / "metrics.jsonl", encoding="utf-8") as lines:
            first = json.loads(next(line for line in lines if "data_wait_s" in line))
        return Started(
            wait_s=first["data_wait_s"],
            first_step=float(self._new[0]) / self.bytes,
            besides=(counts.bytes - float(self._new[0])) / self.bytes,
            index=counts.other_bytes / self.bytes,
            set_bytes=self.bytes,
            shards=SHARDS,
        )

    def _measure(self, name: str, source: Source, dies: bool = False) -> Waited:
        server = Server(self._web, self._folder / "counts-slow", source)
        number = len(list(self._folder.glob("cache-slow-*")))
        run = StreamedRun(
            shards=f"http://{server.address}/tars/", tokenizer=str(tokenizer_file(self._tars)),
            cache=str(self._folder / f"cache-slow-{number}"), max_gb=CACHE * self.bytes / 1e9,
            epochs=1, step_s=STEP_S, settings=SETTINGS,
        )  # fmt: skip
        try:
            waits = _waits(run, server, dies)
        finally:
            server.close()
        least = np.array(least_waits(self._new, source.rate, STEP_S))
        # Nothing is fetched ahead of the first step; from there on the sum begins.
        counted = waits[FIRST_STEPS:]
        return Waited(
            source=name,
            share=_share(counted),
            least=_share(least[FIRST_STEPS : len(waits)]),
            longest_s=float(counted.max()),
            steps=len(counted),
        )

    def _new_bytes(self, url: str) -> NDArray[np.int64]:
        """int64 [steps of an epoch]: bytes that a step is the first to need."""
        config = config_of(url, tokenizer_file(self._tars))
        config.data.cache.dir = str(self._folder / "cache-plan")
        for name, value in SETTINGS.items():
            setattr(config.data, name, value)
        tokenizer = Tokenizer.load(config.data.tokenizer.file)
        plan = Plan(config, tokenizer, cost=lambda totals: totals["tokens"])
        planned = plan.sets[0]
        extents = planned.dataset.extents
        assert extents is not None
        seen, new = set[int](), []
        for step in range(planned.order.sequences_per_epoch // plan.sequences):
            samples = np.concatenate([drawn.samples for drawn in plan.step(step).sequences])
            blocks = set(np.unique(samples // extents.block).tolist()) - seen
            seen |= blocks
            of_step = [extent.length for block in blocks for extent in extents.of_block(block)]
            new.append(sum(of_step))
        return np.array(new)


def least_waits(new_bytes: NDArray[np.int64], rate: float, step_s: float) -> list[float]:
    """Seconds that each step must wait for a source of ``rate`` bytes a second, which is never
    idle.
    """
    waits, now, arrived = [], 0.0, 0.0
    for size in new_bytes.tolist():
        arrived += size / rate
        waits.append(max(0.0, arrived - now))
        now = max(now, arrived) + step_s
    return waits


def table(results: list[Waited]) -> str:
    """For people."""
    lines = ["| source | waited | by arithmetic | longest | steps |", "|---|---|---|---|---|"]
    for row in results:
        counted = f"{row.share:.2%} | {row.least:.2%} | {row.longest_s:.2f} s | {row.steps}"
        lines.append(f"| {row.source} | {counted} |")
    return "\n".join(lines)


def start_lines(started: Started) -> str:
    """For people."""
    return (
        f"start on {started.set_bytes / 1e9:.2f} GB in {started.shards} shards: the first batch "
        f"{started.wait_s:.2f} s after the model was built; of the set, the first step reads "
        f"{started.first_step:.2%}; besides, {started.besides:.2%} of the shards were fetched, "
        f"and the index, {started.index:.2%}"
    )


def _waits(run: StreamedRun, server: Server, dies: bool) -> NDArray[np.float64]:
    command = [sys.executable, str(HERE / "bench_streaming_run.py"), json.dumps(asdict(run))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    waits: list[float] = []
    timers: list[threading.Timer] = []
    for line in process.stdout:
        told: dict[str, Any] = json.loads(line)
        if STEPS_IN_EPOCH in told:
            continue
        waits.append(told["wait_s"])
        if dies and len(waits) == 1:
            timers = [
                threading.Timer(DEAD_AFTER_S, server.kill),
                threading.Timer(DEAD_AFTER_S + DEAD_S, server.start),
            ]
            for timer in timers:
                timer.start()
    for timer in timers:
        timer.cancel()
    if process.wait():
        raise UserError("bench_streaming_run ended early; run it alone to see why")
    return np.array(waits)


def _share(waits: NDArray[np.float64]) -> float:
    return float(waits.sum() / (waits.sum() + STEP_S * len(waits)))
