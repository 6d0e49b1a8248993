"""Which point comes next: random, grid, or Optuna's TPE, as a searcher of Ray Tune."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import optuna
from ray.tune.search import Searcher

from mmscale import prf
from mmscale.config import Config
from mmscale.errors import UserError
from mmscale.tune.records import Records, Trial
from mmscale.tune.space import Point, Space, format_point

# Points in a row that break a rule between keys, before the space is given up.
_MOST_DRAWS = 1000


class Search(Searcher):
    """Hands out trials: first those that were begun and are open, then new ones until there are
    ``tune.trials``.

    What it suggests is ``{"trial": {"number": n, "point": {…}}}``. Points that break a rule
    between keys are passed over.
    """

    def __init__(self, config: Config, space: Space, records: Records) -> None:
        super().__init__(metric="score", mode=config.tune.better())
        self._config, self._space, self._records = config, space, records
        self._open = [trial for trial in records.trials.values() if trial.status == "open"]
        self._numbers: dict[str, int] = {}
        self._points = self._points_of()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray keeps its parts for a restore of its own; the records do that here

    @property
    def most(self) -> int:
        """Trials that may still be handed out."""
        new = self._config.tune.trials - len(self._records.trials)
        return len(self._open) + max(0, min(new, self._points.left()))

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next point, or None when there is none."""
        if self._open:
            trial = self._open.pop(0)
        else:
            number = len(self._records.trials)
            point = self._next_fitting(number) if number < self._config.tune.trials else None
            if point is None:
                return None
            self._records.begin(number, point)
            trial = self._records.trials[number]
        self._points.begin(trial)
        self._numbers[trial_id] = trial.number
        return {"trial": {"number": trial.number, "point": trial.point}}

    def population(self) -> list[dict[str, Any]]:
        """All that would be suggested, at once."""
        return [
            suggestion["trial"]
            for suggestion in map(self.suggest, map(str, range(self.most)))
            if suggestion
        ]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learn from a trial that is over; the records know how it ended."""
        number = self._numbers.pop(trial_id, None)
        if number is not None:
            self._points.learn(self._records.trials[number])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the records have it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the records have it all."""

    def _points_of(self) -> _Random | _Grid | _Tpe:
        kind, done = self._config.tune.search, list(self._records.trials.values())
        # A population has no time to learn from.
        if kind == "random" or self._config.tune.scheduler == "pbt":
            return _Random(self._space, self._config.seed)
        if kind == "grid":
            return _Grid(self._space, self._fits, len(done), self._config.tune.trials)
        assert kind == "tpe", f"tune.search={kind}: unknown"
        return _Tpe(self._space, self._config, [trial for trial in done if trial.status != "open"])

    def _next_fitting(self, number: int) -> Point | None:
        reason = ""
        for attempt in range(_MOST_DRAWS):
            point = self._points.next(number, attempt)
            if point is None:
                return None
            reason = self._fits(point)
            if not reason:
                return point
            self._points.refuse()
        raise UserError(
            f"tune.space: {_MOST_DRAWS} points in a row break a rule between keys, the last one: "
            f"{reason}; narrow the space, or tie keys together with 'when'"
        )

    def _fits(self, point: Point) -> str:
        """Why no run can have these values, or nothing."""
        try:
            self._space.config(point)
        except UserError as error:
            return f"{format_point(point)}: {error}"
        return ""


class _Random:
    """A function of the seed and the trial's number."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def left(self) -> int:
        return 1 << 31

    def next(self, number: int, attempt: int) -> Point | None:
        return self._space.draw(self._seed, number * _MOST_DRAWS + attempt)

    def begin(self, trial: Trial) -> None: ...

    def refuse(self) -> None: ...

    def learn(self, trial: Trial) -> None: ...


class _Grid(_Random):
    """The combinations that fit, in order; those after the last of ``trials`` are not looked at."""

    def __init__(self, space: Space, fault: Any, done: int, trials: int) -> None:
        fitting = (point for point in space.grid() if not fault(point))
        self._left = list(itertools.islice(fitting, done, max(done, trials)))

    def left(self) -> int:
        return len(self._left)

    def next(self, number: int, attempt: int) -> Point | None:
        return self._left.pop(0) if self._left else None


class _Tpe(_Random):
    """Tree-structured Parzen estimators (Bergstra et al., 2011) over all keys together, by Optuna.

    What it suggests follows from the seed and from which results it knew, so also from the order in
    which trials end.
    """

    def __init__(self, space: Space, config: Config, done: list[Trial]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._steps = space, config.train.steps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=max(4, min(10, config.tune.trials // 3)),
                multivariate=True, group=True, constant_liar=True,
                seed=prf.derive_key(config.seed, "tpe", len(done)) % (1 << 32),
            )  # fmt: skip
        falls = config.tune.better() == "min"
        self._study = optuna.create_study(
            sampler=sampler, direction="minimize" if falls else "maximize"
        )
        self._asked: optuna.Trial | None = None
        self._pending: dict[int, optuna.Trial] = {}
        for trial in done:
            self._take_up(trial)
            self.learn(trial)

    def next(self, number: int, attempt: int) -> Point | None:
        self._asked = self._study.ask()
        return self._space.suggest(self._asked)

    def begin(self, trial: Trial) -> None:
        if self._asked is None:
            self._take_up(trial)
        else:
            self._pending[trial.number], self._asked = self._asked, None

    def refuse(self) -> None:
        assert self._asked is not None
        self._study.tell(self._asked, state=optuna.trial.TrialState.FAIL)
        self._asked = None

    def learn(self, trial: Trial) -> None:
        asked = self._pending.pop(trial.number)
        if trial.status == "failed" or not math.isfinite(trial.score):
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
            return
        for step, score in trial.scores.items():
            asked.report(score, step)
        if trial.steps >= self._steps:
            self._study.tell(asked, trial.score)
        else:
            self._study.tell(asked, state=optuna.trial.TrialState.PRUNED)

    def _take_up(self, trial: Trial) -> None:
        """Give the study a trial of an earlier driver."""
        point = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in trial.point.items()
        }
        self._study.enqueue_trial(point)
        asked = self._study.ask()
        self._space.suggest(asked)
        self._pending[trial.number] = asked
