"""What a run reports while it trains: metrics.jsonl, trackers, quarantine.jsonl and the progress
bar.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from mmscale.batch import Batch
from mmscale.checkpoint.run_state import RunState
from mmscale.config import Config
from mmscale.data.planning.step_plan import Plan
from mmscale.errors import UserError
from mmscale.gpu import known_gpu
from mmscale.model.objective import losses
from mmscale.parallel.ranks import Ranks
from mmscale.train.jsonl_log import JsonlLog, cut_lines
from mmscale.train.step_sums import StepSums
from mmscale.train.stop import INTERRUPTED, SAVED
from mmscale.train.straggler import RankTimes
from mmscale.train.tracking import Trackers

_SHOWN = ("loss", "lr", "grad_norm", "tokens_per_s", "step_s", "data_wait_s")  # by trackers

# Of what the prefetcher says, in metrics.jsonl behind "data_".
_FETCHING = ("source_mb_s", "disk_mb_s", "ahead_s", "ahead_steps", "bytes", "requests")
_WAITS = 0.1  # a share of the last steps' time: data is what they wait for
_LAST_STEPS = 20


@dataclass(kw_only=True)
class StepRecord:
    """A step's numbers, still on the device where they are tensors."""

    step: int
    sums: Tensor  # `StepSums` of all ranks, packed
    grad_norm: Tensor
    skip: Tensor  # float32 scalar, 1 if the step was not taken
    lr: float
    tokens: int
    flops: float  # of the model's forward and backward pass, by the plan
    step_s: float
    data_wait_s: float
    fetching: dict[str, Any]  # of this machine's prefetcher, if there is one


class Metrics:
    """Collects, reduces and writes the numbers of each step.

    A step's numbers are read from the device only when the next step has been launched, so that
    logging does not make the device wait; at the end `flush` writes what is still held back.
    """

    def __init__(self, config: Config, ranks: Ranks, plan: Plan, state: RunState) -> None:
        self._config, self._plan, self._ranks = config, plan, ranks
        self.loss_names = tuple(losses())  # a plug-in may have added some since the import
        start = state.step
        self._held: StepRecord | None = None
        self._clock = time.perf_counter()
        self._times = RankTimes(ranks)
        gpu = (
            known_gpu(torch.cuda.get_device_name(ranks.device))
            if ranks.device.type == "cuda"
            else None
        )
        self._rated = gpu.bf16 * ranks.world if gpu else None  # FLOP/s of all ranks
        self._losses: list[float] = []
        # Of the last steps: seconds, and those that the rank waited that waited longest.
        self._lasted: deque[tuple[float, float]] = deque(maxlen=_LAST_STEPS)
        self.stop_code = 0  # exit code of a stop that all ranks know of, or 0
        self.seen, self.bad, self.skipped = state.seen, state.bad, state.skipped
        folder = Path(config.run.dir)
        self._quarantine = folder / "quarantine.jsonl"
        self._faults: JsonlLog | None = None  # of this rank
        self._file = self._bar = self._trackers = self._skips = None
        if ranks.is_first:
            for name in ("metrics.jsonl", "skipped.jsonl"):
                cut_lines(folder / name, start)
            self._file = JsonlLog(folder / "metrics.jsonl")
            self._skips = JsonlLog(folder / "skipped.jsonl")
            if self._quarantine.exists():
                cut_lines(self._quarantine, start)
            self._bar = tqdm(
                total=config.train.steps,
                initial=start,
                unit="step",
                desc="train",
                dynamic_ncols=True,
                disable=not config.run.progress,
                mininterval=0.5,
                file=sys.stderr,
            )
            self._trackers = Trackers(config.run, start)

    def reduce(
        self, losses: dict[str, Tensor], batches: list[Batch], wait: float, stop_code: int
    ) -> Tensor:
        """Packed `StepSums` of all ranks, from this rank's losses and micro-batches, its ``wait``
        for data, the ``stop_code`` of a stop it was asked for.

        Writes down what is broken in the batches.
        """
        batches = batches if self._ranks.reports else []  # others read the same
        faults = [fault for batch in batches for fault in batch.faults]
        work_s, wait_s = self._times.own(wait)
        sums = StepSums(
            losses={name: losses[name] for name in self.loss_names},
            broken=len(faults),
            samples=sum(batch.samples for batch in batches),
            interrupted=stop_code == INTERRUPTED,
            stopped=stop_code == SAVED,
            work_s=work_s,
            wait_s=wait_s,
        ).pack()
        dist.all_reduce(sums)
        if faults:
            # Only now: the first rank has been here, which cut the file to the steps before this
            # start.
            self._faults = self._faults or JsonlLog(self._quarantine)
            self._faults.add(*faults)
        return sums

    def record(
        self,
        step: int,
        *,
        sums: Tensor,
        grad_norm: Tensor,
        skip: Tensor,
        lr: float,
        wait: float,
        fetching: dict[str, Any],
    ) -> None:
        """Take a step's numbers. Raises `UserError` if too much data is broken or too many steps
        were skipped.
        """
        self.flush()
        # From one step's end to the next's; reading the last step's numbers above made them wait
        # for the device.
        now = time.perf_counter()
        planned = self._plan.step(step)
        self._held = StepRecord(
            step=step,
            sums=sums,
            grad_norm=grad_norm,
            skip=skip,
            lr=lr,
            tokens=planned.tokens,
            flops=3.0 * sum(sequence.cost for sequence in planned.sequences),
            step_s=now - self._clock,
            data_wait_s=wait,
            fetching=fetching,
        )
        self._clock = now

    def flush(self) -> None:
        """Write the step that was held back, if any."""
        held, self._held = self._held, None
        if held is None:
            return
        sums = StepSums.unpack(held.sums, self.loss_names, self._ranks.world)
        self.stop_code = INTERRUPTED if sums.interrupted else SAVED if sums.stopped else 0
        self.bad, self.seen = self.bad + int(sums.broken), self.seen + int(sums.samples)
        self._times.watch(held.step, sums.work_s, sums.wait_s)
        row = self._row(held, sums)
        if bool(held.skip):
            self._report_skipped(row)
        else:
            self._losses.append(row["loss"])
        self._write(row)
        self._check_bad_fraction()

    def _row(self, held: StepRecord, sums: StepSums[float]) -> dict[str, Any]:
        """The step's line in metrics.jsonl."""
        rated = self._rated  # None: an unknown device
        return {
            "step": held.step,
            "loss": sum(sums.losses.values()),
            "losses": sums.losses,  # 0 where no task has the objective
            "lr": held.lr,
            "grad_norm": float(held.grad_norm),
            "tokens": held.tokens,
            "tokens_per_s": held.tokens / held.step_s,
            "mfu": held.flops / held.step_s / rated if rated else None,
            "step_s": held.step_s,
            "data_wait_s": held.data_wait_s,
            "bad_samples": self.bad,
            "rank_work_s": sums.work_s,
            "rank_data_wait_s": sums.wait_s,
            "ranks": self._ranks.world,
            "device": self._ranks.device.type,
            **{f"data_{name}": held.fetching[name] for name in _FETCHING if name in held.fetching},
        }

    def sync(self) -> None:
        """`flush`, and flush the files to the disk: the steps of a checkpoint have their lines,
        whatever comes.
        """
        self.flush()
        for file in (self._file, self._skips):
            if file is not None:
                file.flush(durably=True)

    def mean_loss(self) -> float:
        """Of the steps that were taken since this was last asked; infinite if none was."""
        mean = sum(self._losses) / len(self._losses) if self._losses else math.inf
        self._losses.clear()
        return mean

    def close(self) -> None:
        """Close the files."""
        for part in (self._file, self._bar, self._skips, self._faults, self._trackers):
            if part is not None:
                part.close()

    def _write(self, row: dict[str, Any]) -> None:
        if self._file is None or self._bar is None or self._trackers is None:
            return
        if row["step"] % self._config.train.log_every == 0:
            self._file.add(row)
            losses = {f"losses/{name}": value for name, value in row["losses"].items()}
            self._trackers.scalars(row["step"], {name: row[name] for name in _SHOWN} | losses)
        self._lasted.append((row["step_s"], max(row["rank_data_wait_s"], default=0.0)))
        step_s, wait_s = (sum(times) for times in zip(*self._lasted, strict=True))
        waits = ", waits for data" if wait_s > _WAITS * step_s else ""
        self._bar.set_postfix_str(
            f"loss {row['loss']:.4f}, {row['tokens_per_s']:,.0f} tokens/s{waits}", refresh=False
        )
        self._bar.update(1)

    def _report_skipped(self, row: dict[str, Any]) -> None:
        """Note the step and its samples. Raises `UserError` above ``train.max_skipped``."""
        self.skipped += 1
        step, path = row["step"], Path(self._config.run.dir) / "skipped.jsonl"
        if self._skips is not None:
            samples = {
                data_set.name: [
                    sample
                    for sequence in self._plan.step(step).sequences
                    if self._plan.sets[sequence.set_index] is data_set
                    for sample in sequence.samples.tolist()
                ]
                for data_set in self._plan.sets
            }
            facts = {name: row[name] for name in ("step", "losses", "grad_norm")}
            datasets = {data_set.name: data_set.dataset for data_set in self._plan.sets}
            facts["keys"] = {
                name: list(map(datasets[name].key, own)) for name, own in samples.items()
            }
            facts["shards"] = {
                name: list(map(datasets[name].shard, own)) for name, own in samples.items()
            }
            self._skips.add(facts)
        if self.skipped > self._config.train.max_skipped:
            raise UserError(
                f"step {step}: loss or gradient is not finite or spikes, for the {self.skipped}. "
                f"time; more than train.max_skipped={self._config.train.max_skipped}. The steps "
                f"and their samples are in {path}; lower train.optimizer.lr, or look at the samples"
            )

    def _check_bad_fraction(self) -> None:
        limit = self._config.data.max_bad_fraction
        # A single broken sample among the first few is no verdict on the data.
        if self.bad > max(limit * self.seen, 1.0 if limit > 0 else 0.0):
            raise UserError(
                f"{self.bad} of {self.seen} samples could not be used, more than "
                f"data.max_bad_fraction={limit:g}; the reasons are in {self._quarantine}"
            )
