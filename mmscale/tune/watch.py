"""In the driver: records what the trials report, shows progress, and reports what a trial waits
for.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from ray.tune import Callback, Stopper
from tqdm import tqdm

from mmscale.config import Config
from mmscale.on_ray.connect import placement_fault
from mmscale.tune.records import Records, Trial
from mmscale.tune.space import format_point

_PATIENCE_S = 10.0  # without a running trial, until the reason is reported


class Watch(Callback):
    """Called by Ray Tune in the driver.

    Args:
        ray: the package, connected.
        config: the search's.
        records: are added to.
        needs: CPUs and GPUs of every process of a trial.
        total: trials there will be.
    """

    def __init__(
        self, ray: Any, config: Config, records: Records, needs: list[dict[str, float]], total: int
    ) -> None:
        self._ray, self._records, self._needs = ray, records, needs
        self._tune, self._wait_s, self._steps = config.tune, config.ray.wait_s, config.train.steps
        self._numbers: dict[str, int] = {}
        self._idle_since: float | None = None
        self._reported_at = 0.0
        self.fault = ""  # why the search cannot continue
        over = [trial for trial in records.trials.values() if trial.status != "open"]
        self._bar = tqdm(
            total=total + len(over), initial=len(over), unit="trial", desc="tune",
            dynamic_ncols=True, file=sys.stderr, disable=not config.run.progress,
        )  # fmt: skip
        self._show()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray keeps its parts for a restore of its own; the records do that here

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Nothing running for a while: report what is waited for."""
        states = {trial.status for trial in trials}
        if "PENDING" not in states or "RUNNING" in states:
            self._idle_since = None
            return
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        waited = now - self._idle_since
        if waited < _PATIENCE_S or now - self._reported_at < 6 * _PATIENCE_S:
            return
        fault = placement_fault(self._ray, self._needs)
        if not fault:
            return
        self._reported_at = now
        self._report(
            f"mmscale: a trial {fault}; for {waited:.0f} of ray.wait_s={self._wait_s:g} seconds"
        )
        if waited >= self._wait_s:
            self.fault = (
                f"a trial {fault}; add machines, or lower tune.workers, ray.cpus or ray.gpus"
            )

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its number is fixed when it first starts; population-based training copies another's
        later.
        """
        self._numbers.setdefault(trial.trial_id, trial.config["trial"]["number"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Write down an exchange, a score or a failure."""
        number = self._numbers[trial.trial_id]
        known = self._records.trials[number]
        exchange = result.get("exchange")
        if exchange:
            parent = int(exchange["parent"].rpartition("-")[2])
            self._records.exchange(number, parent, exchange["step"], trial.config["trial"]["point"])
        if result.get("failed"):
            self._end(number, "failed", result["failed"])
        elif "step" in result and result["step"] not in known.scores:
            score = result.get("score", math.nan)
            self._records.score(number, result["step"], score, result["seconds"], result["node"])
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It came to its end or was stopped."""
        if self.fault:
            return  # all were stopped, to be resumed another time
        number = self._numbers[trial.trial_id]
        known = self._records.trials[number]
        self._end(number, "finished" if known.steps >= self._steps else "stopped")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It was started again as often as allowed."""
        number = self._numbers.setdefault(trial.trial_id, trial.config["trial"]["number"])
        lines = [
            line.strip()
            for line in str(trial.get_error() or "a lost process").splitlines()
            if line.strip()
        ]
        self._end(number, "failed", lines[-1][:300])

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()

    def _end(self, number: int, status: str, reason: str = "") -> None:
        trial = self._records.trials[number]
        if trial.status != "open":
            return
        self._records.end(number, status, reason)
        if reason:
            self._report(f"mmscale: {trial.name} failed ({format_point(trial.point)}): {reason}")
        self._bar.update(1)
        self._show()

    def _show(self) -> None:
        best = best_trial(list(self._records.trials.values()), self._tune.better())
        if best is not None:
            self._bar.set_postfix_str(
                f"{self._tune.metric} {best.score:.4g} after {best.steps} steps: "
                f"{format_point(best.point)}"
            )

    def _report(self, line: str) -> None:
        tqdm.write(line, file=sys.stderr)


class GiveUp(Stopper):
    """Ends the search when ``watch`` reports that it cannot continue."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Trials end by themselves."""
        return False

    def stop_all(self) -> bool:
        """Whether the search cannot continue."""
        return bool(self._watch.fault)


def best_trial(trials: list[Trial], better: str) -> Trial | None:
    """The best score among those that went furthest; a trial that was stopped early is never the
    best.
    """
    scored = [trial for trial in trials if math.isfinite(trial.score) and trial.status != "failed"]
    if not scored:
        return None
    furthest = max(trial.steps for trial in scored)
    rank = 1 if better == "min" else -1
    return min(
        (trial for trial in scored if trial.steps == furthest),
        key=lambda trial: (rank * trial.score, trial.number),
    )
