"""What `mmscale tune` searches, how, and on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmscale.config.keys import key
from mmscale.errors import UserError

SEARCHES = ("tpe", "random", "grid")
SCHEDULERS = ("asha", "hyperband", "pbt", "none")
_FALLING = ("loss", "wer", "cer")


@dataclass
class ParameterConfig:
    """The values one config key may take: a range or a list."""

    range: list[float] = key(
        [], "[low, high], both included. Whole numbers for a key that takes those."
    )
    scale: str = key("linear", "How a range is divided: log for rates.", choices=("linear", "log"))
    points: int = key(5, "grid: number of values of a range, evenly spaced on its scale.", low=1)
    choices: list[Any] = key([], "The values, of any kind that the key takes.")
    when: dict[str, Any] = key(
        {}, "Search this key only while other searched keys have these values (a value or a list)."
    )


@dataclass(kw_only=True)
class TuneConfig:
    trials: int = key(16, "Number of trials; grid: at most this many points.", low=1)
    search: str = key(
        "tpe",
        "How trials are chosen: tpe (Bayesian, by Optuna), random (a function of seed and trial), "
        "grid.",
        choices=SEARCHES,
    )
    scheduler: str = key(
        "asha",
        "Which trials stop early: asha (asynchronous successive halving), hyperband (asha with "
        "several first stops), pbt (none; the worse take the weights of the better, with other "
        "values), none.",
        choices=SCHEDULERS,
    )
    metric: str = key(
        "loss",
        "What is compared: loss (mean of the last fifth of the steps), or a score of eval as "
        "<name>.<value>, such as digits.accuracy.",
    )
    mode: str = key(
        "",
        "Which is better: min or max; empty: min for loss, wer and cer.",
        choices=("", "min", "max"),
    )
    first_stop: int = key(
        0,
        "asha, hyperband: steps that every trial gets; pbt: steps between exchanges. 0: "
        "train.steps / reduction^2; pbt: an eighth of train.steps.",
        low=0,
    )
    reduction: int = key(
        3, "asha, hyperband: one of this many trials continues at each stop.", low=2
    )
    brackets: int = key(3, "hyperband: number of different first stops.", low=1)
    concurrent: int = key(0, "Trials at once; 0: as many as fit on the cluster.", low=0)
    workers: int = key(
        1, "Processes of one trial, which split its steps as parallel.strategy says.", low=1
    )
    transfer: list[str] = key(
        [],
        "Overrides that make a larger model, such as model.width=256. After the search, the "
        "best trial's rate, its half and its double are tried on it. Set model.base_width too, "
        "or the rate does not hold.",
    )
    space: dict[str, ParameterConfig] = key(
        {}, "What is searched: config keys and the values they may take."
    )

    def better(self) -> str:
        """``min`` or ``max``."""
        return self.mode or ("min" if self.metric.rpartition(".")[2] in _FALLING else "max")

    def stops(self, steps: int) -> list[int]:
        """Steps after which a trial of ``steps`` is scored, the last included; rungs of ASHA (Li et
        al., 2020).
        """
        if self.scheduler == "none":
            return [steps]
        if self.scheduler == "pbt":
            interval = self.first_stop or max(1, steps // 8)
            return [*range(interval, steps, interval), steps]
        stops, stop = [], self.first_rung(steps)
        while stop < steps:
            stops.append(stop)
            stop *= self.reduction
        return [*stops, steps]

    def first_rung(self, steps: int) -> int:
        """``first_stop``, resolved for asha and hyperband."""
        return min(steps, self.first_stop or -(-steps // self.reduction**2))


def check_tune(tune: TuneConfig) -> None:
    """Rules between keys that need nothing else. Raises `UserError`."""
    for name, parameter in tune.space.items():
        where = f"tune.space.{name}"
        if bool(parameter.range) == bool(parameter.choices):
            raise UserError(f"{where}: give either range: [low, high] or choices: [...]")
        if parameter.range:
            if len(parameter.range) != 2 or not parameter.range[0] < parameter.range[1]:
                raise UserError(
                    f"{where}.range: {parameter.range} is not [low, high] with low below high; "
                    "correct it"
                )
            if parameter.scale == "log" and parameter.range[0] <= 0:
                raise UserError(
                    f"{where}.range: a log scale has no {parameter.range[0]:g}; begin above 0"
                )
        for needed in parameter.when:
            if needed == name:
                raise UserError(f"{where}.when: a key is no condition of its own; name another one")
            if needed not in tune.space:
                raise UserError(
                    f"{where}.when: {needed} is not searched; add it to tune.space or remove it"
                )
            if list(tune.space).index(needed) > list(tune.space).index(name):
                raise UserError(f"{where}.when: {needed} must stand before {name} in tune.space")
    if tune.search == "grid" and tune.scheduler == "pbt":
        raise UserError("tune.search: a grid's values stay, pbt changes them; use random with pbt")
    if tune.workers > 1 and tune.scheduler == "pbt":
        raise UserError(
            f"tune.workers={tune.workers}: pbt exchanges weights between trials of one process; "
            "use 1, or another tune.scheduler"
        )
