"""What a run tells while it trains: metrics.jsonl, TensorBoard, quarantine.jsonl and the progress bar."""

from __future__ import annotations

import json
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
from mmscale.config import Config
from mmscale.errors import UserError
from mmscale.parallel.ranks import Ranks

LOSSES = ("next_token", "contrastive", "ctc", "classify")


@dataclass
class StepRecord:
    """A step's numbers, still on the device where they are tensors."""

    step: int
    sums: Tensor  # float32 [losses + 2]: every loss, broken samples, samples; summed over ranks
    grad_norm: Tensor
    lr: float
    tokens: int
    step_s: float
    data_wait_s: float


class Metrics:
    """Collects, reduces and writes the numbers of each step.

    A step's numbers are read from the device only when the next step has been launched, so that logging does
    not make the device wait. `finish` writes what is still held back.
    """

    def __init__(self, config: Config, ranks: Ranks, start: int, seen: int = 0, bad: int = 0) -> None:
        self._config = config
        self._held: StepRecord | None = None
        self._clock = time.perf_counter()
        self.seen, self.bad = seen, bad
        folder = Path(config.run.dir)
        self._quarantine = folder / "quarantine.jsonl"
        self._file = self._bar = self._board = None
        if ranks.is_first:
            self._file = _reopen(folder / "metrics.jsonl", start)
            self._bar = tqdm(
                total=config.train.steps, initial=start, unit="step", desc="train", dynamic_ncols=True,
                disable=not config.run.progress, mininterval=0.5, file=sys.stderr,
            )  # fmt: skip
            if config.run.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def record(
        self, step: int, losses: dict[str, Tensor], grad_norm: Tensor, lr: float, tokens: int, wait: float,
        batches: list[Batch],
    ) -> None:  # fmt: skip
        """Take a step's numbers; ``losses`` are this rank's sums. Raises `UserError` if too much data is broken."""
        faults = [fault for batch in batches for fault in batch.faults]
        if faults:
            with open(self._quarantine, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(fault, ensure_ascii=False) + "\n" for fault in faults))
        counts = [float(len(faults)), float(sum(batch.samples for batch in batches))]
        sums = torch.stack([losses[name] for name in LOSSES] + [grad_norm.new_tensor(n) for n in counts])
        dist.all_reduce(sums)
        self.flush()
        # From one step's end to the next's; reading the last step's numbers above made them wait for the device.
        now = time.perf_counter()
        self._held = StepRecord(step, sums, grad_norm, lr, tokens, now - self._clock, wait)
        self._clock = now

    def flush(self) -> None:
        """Write the step that was held back, if any."""
        held, self._held = self._held, None
        if held is None:
            return
        *losses, bad, seen = held.sums.tolist()
        self.bad, self.seen = self.bad + int(bad), self.seen + int(seen)
        row: dict[str, Any] = {
            "step": held.step,
            "loss": sum(losses),
            "losses": dict(zip(LOSSES, losses, strict=True)),  # 0 where no task has the objective
            "lr": held.lr,
            "grad_norm": float(held.grad_norm),
            "tokens": held.tokens,
            "tokens_per_s": held.tokens / held.step_s,
            "mfu": None,  # the rated speed of this device is not known
            "step_s": held.step_s,
            "data_wait_s": held.data_wait_s,
            "bad_samples": self.bad,
        }
        self._write(row)
        self._check_bad_fraction()

    def finish(self) -> None:
        """Write everything and close the files."""
        self.flush()
        for part in (self._file, self._bar, self._board):
            if part is not None:
                part.close()

    def _write(self, row: dict[str, Any]) -> None:
        if self._file is None or self._bar is None:
            return
        if row["step"] % self._config.train.log_every == 0:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            if self._board is not None:
                for name in ("loss", "lr", "grad_norm", "tokens_per_s", "step_s", "data_wait_s"):
                    self._board.add_scalar(name, row[name], row["step"])
                for name, value in row["losses"].items():
                    self._board.add_scalar(f"losses/{name}", value, row["step"])
        self._bar.set_postfix_str(
            f"loss {row['loss']:.4f}, {row['tokens_per_s']:,.0f} tokens/s", refresh=False
        )
        self._bar.update(1)

    def _check_bad_fraction(self) -> None:
        limit = self._config.data.max_bad_fraction
        # A single broken sample among the first few is no verdict on the data.
        if self.bad > max(limit * self.seen, 1.0 if limit > 0 else 0.0):
            raise UserError(
                f"{self.bad} of {self.seen} samples could not be used, more than data.max_bad_fraction={limit:g}; "
                f"the reasons are in {self._quarantine}"
            )


def _reopen(path: Path, start: int) -> Any:
    """Open metrics.jsonl for appending, without the lines of steps that will be run again."""
    kept = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # a line cut short by a crash
            if row["step"] < start:
                kept.append(line + "\n")
    path.write_text("".join(kept), encoding="utf-8")
    return open(path, "a", encoding="utf-8")
