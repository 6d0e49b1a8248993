"""The space of settings that is searched: which keys, which values, and under which conditions.

A point of the space is a dict from config keys to values; keys whose condition does not hold are
left out.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mmscale import prf
from mmscale.config import Config, ParameterConfig, TuneConfig
from mmscale.config_file import config_from_tree, key_type, parse_override, set_key, to_tree
from mmscale.errors import UserError

if TYPE_CHECKING:
    import optuna

Point = dict[str, Any]

# Share of the values that an exchange draws anew (Jaderberg et al., 2017, use it too).
_RESAMPLED = 0.25
_FACTORS = (0.8, 1.25)  # by which it changes the others
_OPTUNA_CHOICES = (bool, int, float, str)  # what Optuna takes as it is


class Space:
    """``tune.space`` over ``config``.

    Raises:
        UserError: nothing to search, a key that does not exist, a value it does not take.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._parameters = config.tune.space
        if not self._parameters:
            raise UserError(
                "tune.space: nothing to search; name keys and their values, as "
                "configs/tune/digits.yaml does"
            )
        self._whole = {
            name: self._is_whole(name, parameter) for name, parameter in self._parameters.items()
        }
        for name, parameter in self._parameters.items():
            for value in parameter.choices or parameter.range:
                self._try_value(
                    name, int(value) if parameter.range and self._whole[name] else value
                )
            for other, wanted in parameter.when.items():
                self._check_condition(name, other, wanted)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def describe(self) -> dict[str, str]:
        """Each key with its values, for people and for comparing two spaces."""
        out = {}
        for name, parameter in self._parameters.items():
            values = (
                f"{parameter.range[0]:g} … {parameter.range[1]:g} ({parameter.scale})"
                if parameter.range
                else ", ".join(map(str, parameter.choices))
            )
            out[name] = values + (f" when {parameter.when}" if parameter.when else "")
        return out

    def draw(self, seed: int, number: int) -> Point:
        """Trial ``number`` of a random search: a function of both, whoever asks and when."""
        draws = prf.Draws(prf.derive_key(seed, "tune", number))
        return self._fill(lambda name, parameter: self._at(name, parameter, draws.uniform()))

    def suggest(self, trial: optuna.Trial) -> Point:
        """The point Optuna's sampler chooses for ``trial``."""

        def value(name: str, parameter: ParameterConfig) -> Any:
            if parameter.choices:
                if all(isinstance(choice, _OPTUNA_CHOICES) for choice in parameter.choices):
                    return trial.suggest_categorical(name, parameter.choices)
                at = trial.suggest_categorical(name, [str(choice) for choice in parameter.choices])
                return next(choice for choice in parameter.choices if str(choice) == at)
            low, high = parameter.range
            if self._whole[name]:
                return trial.suggest_int(name, int(low), int(high), log=parameter.scale == "log")
            return trial.suggest_float(name, low, high, log=parameter.scale == "log")

        return self._fill(value)

    def grid(self) -> Iterator[Point]:
        """Every combination, each once."""
        axes = []
        for name, parameter in self._parameters.items():
            axes.append([(name, value) for value in self._grid_values(name, parameter)])
        given = set()
        for combination in itertools.product(*axes):
            chosen = dict(combination)
            point = self._fill(lambda name, _, chosen=chosen: chosen[name])  # type: ignore[misc]
            text = repr(point)
            if text not in given:
                given.add(text)
                yield point

    def explore(self, point: Point, seed: int, number: int) -> Point:
        """Values near ``point``'s, for a trial that continues from another's weights
        (population-based training).

        ``number``: of such exchanges so far.
        """
        draws = prf.Draws(prf.derive_key(seed, "explore", number))

        def value(name: str, parameter: ParameterConfig) -> Any:
            anew, turn = draws.uniform() < _RESAMPLED, draws.uniform()
            if anew or name not in point:
                return self._at(name, parameter, turn)
            if parameter.choices:
                at = parameter.choices.index(point[name]) + (1 if turn < 0.5 else -1)
                return parameter.choices[min(max(at, 0), len(parameter.choices) - 1)]
            low, high = parameter.range
            moved = min(max(point[name] * _FACTORS[turn < 0.5], low), high)
            return round(moved) if self._whole[name] else moved

        return self._fill(value)

    def overrides(self, written: list[str]) -> Point:
        """``["model.width=256"]`` as a point of keys that need not be searched. Raises
        `UserError`.
        """
        point = dict(map(parse_override, written))
        for name, value in point.items():
            self._try_value(name, value, "tune.transfer")
        return point

    def config(self, point: Point, where: str = "tune.space") -> Config:
        """The run's config at ``point``, which messages call ``where``; it searches nothing itself.

        Raises:
            UserError: the values break a rule between keys.
        """
        tree = to_tree(self._config)
        tree["tune"] = to_tree(TuneConfig())
        for name, value in point.items():
            set_key(tree, name, copy.deepcopy(value))
        return config_from_tree(tree, where)

    def _fill(self, value: Any) -> Point:
        """Ask ``value(name, parameter)`` for every key whose condition holds."""
        point: Point = {}
        for name, parameter in self._parameters.items():
            if all(
                _is_one_of(point.get(other), wanted) for other, wanted in parameter.when.items()
            ):
                point[name] = value(name, parameter)
        return point

    def _at(self, name: str, parameter: ParameterConfig, share: float) -> Any:
        """The value at ``share`` in [0, 1] of the way through the parameter's values."""
        if parameter.choices:
            return parameter.choices[
                min(int(share * len(parameter.choices)), len(parameter.choices) - 1)
            ]
        low, high = parameter.range
        if self._whole[name]:
            # Every whole number is as likely as its neighbour, the ends too.
            low, high = low - 0.5, math.nextafter(high + 0.5, low)
        if parameter.scale == "log":
            low = max(low, parameter.range[0] / 2)
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        value = min(max(value, parameter.range[0]), parameter.range[1])
        return round(value) if self._whole[name] else value

    def _grid_values(self, name: str, parameter: ParameterConfig) -> list[Any]:
        return parameter.choices or [
            self._at(name, parameter, at / max(1, parameter.points - 1))
            for at in range(parameter.points)
        ]

    def _check_condition(self, name: str, other: str, wanted: Any) -> None:
        """Every value that ``name`` waits for is one that ``other`` may take."""
        parameter = self._parameters[other]
        for value in wanted if isinstance(wanted, list) and wanted else [wanted]:
            if parameter.range and self._whole[other]:
                taken = (
                    isinstance(value, int | float)
                    and value % 1 == 0
                    and parameter.range[0] <= value <= parameter.range[1]
                )
            elif parameter.range and self._config.tune.search != "grid":
                taken = False  # hit by chance alone
            else:
                taken = value in self._grid_values(other, parameter) and wanted != []
            if not taken:
                raise UserError(
                    f"tune.space.{name}.when: {other} is never {value!r}; name one of its values: "
                    f"{self.describe()[other]}"
                )

    def _is_whole(self, name: str, parameter: ParameterConfig) -> bool:
        kind = key_type(name)
        if kind is None:
            self._try_value(
                name, (parameter.choices or parameter.range)[0]
            )  # reports which part is unknown
            raise UserError(f"tune.space.{name}: no such key; mmscale train --keys lists them")
        if name == "train.steps":
            raise UserError(
                f"tune.space.{name}: trials are compared after equally many; give it one value, "
                "outside the space"
            )
        if name.startswith(("tune", "run.", "ray.", "plugins")):
            raise UserError(
                f"tune.space.{name}: says how and where to search; remove it from the space"
            )
        if parameter.range and kind not in (int, float):
            raise UserError(f"tune.space.{name}: takes no range of numbers; give choices: [...]")
        if kind is int and any(value != int(value) for value in parameter.range):
            raise UserError(
                f"tune.space.{name}.range: {parameter.range}: this key takes whole numbers"
            )
        return kind is int

    def _try_value(self, name: str, value: Any, where: str = "tune.space") -> None:
        """The key takes it, whatever the rules with other keys say."""
        tree = to_tree(self._config)
        set_key(tree, name, copy.deepcopy(value))
        config_from_tree(tree, f"{where}.{name}", rules=False)


def _is_one_of(value: Any, wanted: Any) -> bool:
    return value in wanted if isinstance(wanted, list) else value == wanted


def format_point(point: Point) -> str:
    """Short, for a line: last part of each key, floats to three digits."""
    parts = [
        f"{name.rpartition('.')[2]}={value:.3g}"
        if isinstance(value, float)
        else f"{name.rpartition('.')[2]}={value}"
        for name, value in point.items()
    ]
    return " ".join(parts)
