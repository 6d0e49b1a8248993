"""Which trials continue and which are stopped, by the schedulers of Ray Tune, which take up what an
earlier driver knew.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)

from mmscale import prf
from mmscale.config import Config
from mmscale.tune.records import Records, Trial
from mmscale.tune.space import Space


def make_scheduler(config: Config, space: Space, records: Records) -> TrialScheduler:
    """The scheduler ``tune.scheduler`` names. Results have ``step`` and ``score``."""
    tune = config.tune
    if tune.scheduler == "none":
        return FIFOScheduler()
    if tune.scheduler == "pbt":
        return _Population(config, space, records)
    assert tune.scheduler in ("asha", "hyperband"), f"tune.scheduler={tune.scheduler}: unknown"
    brackets = tune.brackets if tune.scheduler == "hyperband" else 1
    return _RememberedHalving(config, records, brackets)


class _RememberedHalving(AsyncHyperBandScheduler):
    """Asynchronous successive halving whose rungs hold the scores of earlier drivers' trials too.

    Ray's own restored scheduler forgets its rungs.
    """

    def __init__(self, config: Config, records: Records, brackets: int) -> None:
        super().__init__(
            time_attr="step", metric="score", mode=config.tune.better(), max_t=config.train.steps,
            grace_period=config.tune.first_rung(config.train.steps),
            reduction_factor=config.tune.reduction, brackets=brackets,
        )  # fmt: skip
        self._seed, self._records = config.seed, records
        for trial in records.trials.values():
            if trial.status != "open":
                self._recall(SimpleNamespace(trial_id=trial.name), trial)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._recall(trial, self._records.trials[trial.config["trial"]["number"]])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        # A score that is no number compares with nothing. Ray would never stop its trial.
        if math.isnan(result.get("score", 0.0)):
            return str(self.STOP)
        return str(super().on_trial_result(tune_controller, trial, result))

    def _recall(self, stand_in: Any, trial: Trial) -> None:
        """Add a trial, in the bracket its number gives it, with the scores it has."""
        before = np.random.get_state()
        np.random.seed(prf.derive_key(self._seed, "bracket", trial.number) % (1 << 32))
        nobody: Any = None  # the controller, of whom nothing is asked
        super().on_trial_add(nobody, stand_in)  # draws the bracket from numpy's global numbers
        np.random.set_state(before)
        for step, score in sorted(trial.scores.items()):
            if not math.isnan(score):
                super().on_trial_result(nobody, stand_in, {"step": step, "score": score})


class _Population(PopulationBasedTraining):
    """Population-based training (Jaderberg et al., 2017); values near those of the better trial,
    within the space.
    """

    def __init__(self, config: Config, space: Space, records: Records) -> None:
        better = config.tune.better()
        super().__init__(
            time_attr="step", metric="score", mode=better,
            perturbation_interval=config.tune.stops(config.train.steps)[0],
            custom_explore_fn=self._near, log_config=False, require_attrs=False,
        )  # fmt: skip
        self._worst = math.inf if better == "min" else -math.inf
        self._space, self._seed = space, config.seed
        self._exchanges = sum(trial.generation for trial in records.trials.values())

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if math.isnan(result.get("score", 0.0)):
            result = {**result, "score": self._worst}
        return str(super().on_trial_result(tune_controller, trial, result))

    def _near(self, sampled: dict[str, Any]) -> dict[str, Any]:
        number, self._exchanges = self._exchanges, self._exchanges + 1
        point = self._space.explore(sampled["trial"]["point"], self._seed, number)
        return {"trial": {**sampled["trial"], "point": point}}
