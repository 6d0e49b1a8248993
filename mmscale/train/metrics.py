"""What a run tells while it trains: metrics.jsonl, TensorBoard, quarantine.jsonl and the progress
bar.
"""

from __future__ import annotations

import math
import sys
import time
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
from mmscale.train.stop import INTERRUPTED, SAVED
from mmscale.train.straggler import RankTimes

_SHOWN = ("loss", "lr", "grad_norm", "tokens_per_s", "step_s", "data_wait_s")  # by TensorBoard


@dataclass
class StepRecord:
    """A step's numbers, still on the device where they are tensors."""

    step: int
    # float32: every loss; broken samples, samples, wishes to stop; work and wait of every rank;
    # summed
    sums: Tensor
    grad_norm: Tensor
    skip: Tensor  # float32 scalar, 1 if the step was not taken
    lr: float
    tokens: int
    flops: float  # of the model's forward and backward pass, by the plan
    step_s: float
    data_wait_s: float


class Metrics:
    """Collects, reduces and writes the numbers of each step.

    A step's numbers are read from the device only when the next step has been launched, so that
    logging does not make the device wait; at the end `flush` writes what is still held back.
    """

    def __init__(self, config: Config, ranks: Ranks, plan: Plan, state: RunState) -> None:
        self._config, self._plan, self._ranks = config, plan, ranks
        self.losses = tuple(losses())  # names; a plug-in may have added some since the import
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
        self.stop_code = 0  # exit code of a stop that all ranks know of, or 0
        self.seen, self.bad, self.skipped = state.seen, state.bad, state.skipped
        folder = Path(config.run.dir)
        self._quarantine = folder / "quarantine.jsonl"
        self._faults: JsonlLog | None = None  # of this rank
        self._file = self._bar = self._board = self._skips = None
        if ranks.is_first:
            for name in ("metrics.jsonl", "skipped.jsonl"):
                cut_lines(folder / name, start)
            self._file, self._skips = (
                JsonlLog(folder / "metrics.jsonl"),
                JsonlLog(folder / "skipped.jsonl"),
            )
            if self._quarantine.exists():
                cut_lines(self._quarantine, start)
            self._bar = tqdm(
                total=config.train.steps, initial=start, unit="step", desc="train",
                dynamic_ncols=True,
                disable=not config.run.progress, mininterval=0.5, file=sys.stderr,
            )  # fmt: skip
            if config.run.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def reduce(
        self, losses: dict[str, Tensor], batches: list[Batch], wait: float, stop_code: int
    ) -> Tensor:
        """`StepRecord.sums` from this rank's losses and micro-batches, its ``wait`` for data, the
        ``stop_code`` of a stop it was told of.

        Writes down what is broken in the batches.
        """
        batches = batches if self._ranks.reports else []  # others read the same
        faults = [fault for batch in batches for fault in batch.faults]
        samples = sum(batch.samples for batch in batches)
        counts = [
            len(faults),
            samples,
            stop_code == INTERRUPTED,
            stop_code == SAVED,
            *self._times.own(wait),
        ]
        told = next(iter(losses.values()))
        sums = torch.cat(
            [torch.stack([losses[name] for name in self.losses]), told.new_tensor(counts)]
        )
        dist.all_reduce(sums)
        if (
            faults
        ):  # after the first rank has been here, which cut the file to the steps before this start
            self._faults = self._faults or JsonlLog(self._quarantine)
            self._faults.add(*faults)
        return sums

    def record(
        self, step: int, sums: Tensor, grad_norm: Tensor, skip: Tensor, lr: float, wait: float
    ) -> None:
        """Take a step's numbers. Raises `UserError` if too much data is broken or too many steps
        were skipped.
        """
        self.flush()
        # From one step's end to the next's; reading the last step's numbers above made them wait
        # for the device.
        now = time.perf_counter()
        planned = self._plan.step(step)
        flops = 3.0 * sum(one.cost for one in planned.sequences)
        self._held = StepRecord(
            step, sums, grad_norm, skip, lr, planned.tokens, flops, now - self._clock, wait
        )
        self._clock = now

    def flush(self) -> None:
        """Write the step that was held back, if any."""
        held, self._held = self._held, None
        if held is None:
            return
        sums = held.sums.tolist()
        losses, (bad, seen, interrupted, told) = (
            sums[: len(self.losses)],
            sums[len(self.losses) : len(self.losses) + 4],
        )
        self.stop_code = INTERRUPTED if interrupted else SAVED if told else 0
        work, waits = self._times.tell(held.step, sums[len(self.losses) + 4 :])
        self.bad, self.seen = self.bad + int(bad), self.seen + int(seen)
        row: dict[str, Any] = {
            "step": held.step,
            "loss": sum(losses),
            "losses": dict(
                zip(self.losses, losses, strict=True)
            ),  # 0 where no task has the objective
            "lr": held.lr,
            "grad_norm": float(held.grad_norm),
            "tokens": held.tokens,
            "tokens_per_s": held.tokens / held.step_s,
            "mfu": held.flops / held.step_s / self._rated
            if self._rated
            else None,  # None: an unknown device
            "step_s": held.step_s,
            "data_wait_s": held.data_wait_s,
            "bad_samples": self.bad,
            "rank_work_s": work,
            "rank_data_wait_s": waits,
            "ranks": self._ranks.world,
            "device": self._ranks.device.type,
        }
        if bool(held.skip):
            self._tell_skipped(row)
        else:
            self._losses.append(sum(losses))
        self._write(row)
        self._check_bad_fraction()

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
        for part in (self._file, self._bar, self._skips, self._faults):
            if part is not None:
                part.close()
        self._to_board("close")

    def _write(self, row: dict[str, Any]) -> None:
        if self._file is None or self._bar is None:
            return
        if row["step"] % self._config.train.log_every == 0:
            self._file.add(row)
            shown = {name: row[name] for name in _SHOWN} | {
                f"losses/{name}": value for name, value in row["losses"].items()
            }
            for name, value in shown.items():
                self._to_board("add_scalar", name, value, row["step"])
        self._bar.set_postfix_str(
            f"loss {row['loss']:.4f}, {row['tokens_per_s']:,.0f} tokens/s", refresh=False
        )
        self._bar.update(1)

    def _to_board(self, act: str, *arguments: Any) -> None:
        """TensorBoard is a copy of metrics.jsonl: without it, such as on a full disk, the run goes
        on.
        """
        if self._board is None:
            return
        try:
            getattr(self._board, act)(*arguments)
        except OSError as error:
            self._board = None
            print(
                f"mmscale: warning: no more is written for TensorBoard ({error.strerror})",
                file=sys.stderr,
            )

    def _tell_skipped(self, row: dict[str, Any]) -> None:
        """Note the step and its samples. Raises `UserError` above ``train.max_skipped``."""
        self.skipped += 1
        step, path = row["step"], Path(self._config.run.dir) / "skipped.jsonl"
        if self._skips is not None:
            keys = {
                one.name: [
                    one.dataset.key(sample)
                    for sequence in self._plan.step(step).sequences
                    if self._plan.sets[sequence.set_index] is one
                    for sample in sequence.samples.tolist()
                ]
                for one in self._plan.sets
            }
            facts = {name: row[name] for name in ("step", "losses", "grad_norm")} | {"keys": keys}
            self._skips.add(facts)
        if self.skipped > self._config.train.max_skipped:
            raise UserError(
                f"step {step}: loss or gradient is not finite or spikes, for the {self.skipped}. "
                "time; more than "
                f"train.max_skipped={self._config.train.max_skipped}. The steps and their samples "
                f"are in {path}; "
                "lower train.optimizer.lr, or look at the samples"
            )

    def _check_bad_fraction(self) -> None:
        limit = self._config.data.max_bad_fraction
        # A single broken sample among the first few is no verdict on the data.
        if self.bad > max(limit * self.seen, 1.0 if limit > 0 else 0.0):
            raise UserError(
                f"{self.bad} of {self.seen} samples could not be used, more than "
                f"data.max_bad_fraction={limit:g}; "
                f"the reasons are in {self._quarantine}"
            )
