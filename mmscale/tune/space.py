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

_RESAMPLED = (
    0.25  # share of the values that an exchange draws anew (Jaderberg et al., 2017, use it too)
)
_FACTORS = (0.8, 1.25)  # by which it changes the others
_TOLD_CHOICES = (bool, int, float, str)  # what Optuna takes as it is


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
        self._whole = {name: self._is_whole(name, one) for name, one in self._parameters.items()}
        for name, one in self._parameters.items():
            for value in one.choices or one.range:
                self._try_value(name, int(value) if one.range and self._whole[name] else value)
            for other, wanted in one.when.items():
                self._check_condition(name, other, wanted)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def describe(self) -> dict[str, str]:
        """Each key with its values, for people and for comparing two spaces."""
        out = {}
        for name, one in self._parameters.items():
            values = (
                f"{one.range[0]:g} … {one.range[1]:g} ({one.scale})"
                if one.range
                else ", ".join(map(str, one.choices))
            )
            out[name] = values + (f" when {one.when}" if one.when else "")
        return out

    def draw(self, seed: int, number: int) -> Point:
        """Trial ``number`` of a random search: a function of both, whoever asks and when."""
        draws = prf.Draws(prf.derive_key(seed, "tune", number))
        return self._fill(lambda name, one: self._at(name, one, draws.uniform()))

    def suggest(self, trial: optuna.Trial) -> Point:
        """The point Optuna's sampler chooses for ``trial``."""

        def value(name: str, one: ParameterConfig) -> Any:
            if one.choices:
                if all(isinstance(choice, _TOLD_CHOICES) for choice in one.choices):
                    return trial.suggest_categorical(name, one.choices)
                at = trial.suggest_categorical(name, [str(choice) for choice in one.choices])
                return next(choice for choice in one.choices if str(choice) == at)
            low, high = one.range
            if self._whole[name]:
                return trial.suggest_int(name, int(low), int(high), log=one.scale == "log")
            return trial.suggest_float(name, low, high, log=one.scale == "log")

        return self._fill(value)

    def grid(self) -> Iterator[Point]:
        """Every combination, each once."""
        axes = []
        for name, one in self._parameters.items():
            axes.append([(name, value) for value in self._grid_values(name, one)])
        given = set()
        for combination in itertools.product(*axes):
            chosen = dict(combination)
            point = self._fill(lambda name, one, chosen=chosen: chosen[name])  # type: ignore[misc]
            told = repr(point)
            if told not in given:
                given.add(told)
                yield point

    def explore(self, point: Point, seed: int, number: int) -> Point:
        """Values near ``point``'s, for a trial that goes on from another's weights
        (population-based training).

        ``number``: of such exchanges so far.
        """
        draws = prf.Draws(prf.derive_key(seed, "explore", number))

        def value(name: str, one: ParameterConfig) -> Any:
            anew, turn = draws.uniform() < _RESAMPLED, draws.uniform()
            if anew or name not in point:
                return self._at(name, one, turn)
            if one.choices:
                at = one.choices.index(point[name]) + (1 if turn < 0.5 else -1)
                return one.choices[min(max(at, 0), len(one.choices) - 1)]
            low, high = one.range
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
        for name, one in self._parameters.items():
            if all(_is_one_of(point.get(other), wanted) for other, wanted in one.when.items()):
                point[name] = value(name, one)
        return point

    def _at(self, name: str, one: ParameterConfig, share: float) -> Any:
        """The value at ``share`` in [0, 1] of the way through the parameter's values."""
        if one.choices:
            return one.choices[min(int(share * len(one.choices)), len(one.choices) - 1)]
        low, high = one.range
        if self._whole[name]:
            # Every whole number is as likely as its neighbour, the ends too.
            low, high = low - 0.5, math.nextafter(high + 0.5, low)
        if one.scale == "log":
            low = max(low, one.range[0] / 2)
            found = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            found = low + share * (high - low)
        found = min(max(found, one.range[0]), one.range[1])
        return round(found) if self._whole[name] else found

    def _grid_values(self, name: str, one: ParameterConfig) -> list[Any]:
        return one.choices or [
            self._at(name, one, at / max(1, one.points - 1)) for at in range(one.points)
        ]

    def _check_condition(self, name: str, other: str, wanted: Any) -> None:
        """Every value that ``name`` waits for is one that ``other`` may take."""
        one = self._parameters[other]
        for value in wanted if isinstance(wanted, list) and wanted else [wanted]:
            if one.range and self._whole[other]:
                taken = (
                    isinstance(value, int | float)
                    and value % 1 == 0
                    and one.range[0] <= value <= one.range[1]
                )
            elif one.range and self._config.tune.search != "grid":
                taken = False  # hit by chance alone
            else:
                taken = value in self._grid_values(other, one) and wanted != []
            if not taken:
                raise UserError(
                    f"tune.space.{name}.when: {other} is never {value!r}; name one of its values: "
                    f"{self.describe()[other]}"
                )

    def _is_whole(self, name: str, one: ParameterConfig) -> bool:
        kind = key_type(name)
        if kind is None:
            self._try_value(name, (one.choices or one.range)[0])  # tells which part is unknown
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
        if one.range and kind not in (int, float):
            raise UserError(f"tune.space.{name}: takes no range of numbers; give choices: [...]")
        if kind is int and any(value != int(value) for value in one.range):
            raise UserError(f"tune.space.{name}.range: {one.range}: this key takes whole numbers")
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
