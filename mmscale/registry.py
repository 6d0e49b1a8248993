"""Kinds by name: objectives, stems, optimisers, strategies, trackers, text normalisers.

Every kind of ours is a module of one package, named as the kind is: a new one is a new file, and no
list has to change (docs/extending.md). The file is imported when the kind is first used, so that
naming the choices of a config costs no import of torch. It registers itself:

    OBJECTIVES.register("next_token", NextToken())

A plug-in (`mmscale.plugins`) registers its kinds by the same call.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cached_property
from pathlib import Path
from typing import Any

from mmscale.errors import UserError


class Registry:
    """The kinds of one thing.

    Args:
        what: the thing in words, for messages.
        package: dotted name of the package that holds a module for every kind of ours.
        carries: attributes that every kind must have, which others read by these names.
    """

    def __init__(self, what: str, package: str, carries: tuple[str, ...] = ()) -> None:
        self.what, self.package, self.carries = what, package, carries
        self._kinds: dict[str, Any] = {}

    def register(self, name: str, kind: Any) -> None:
        """Make ``kind`` known under ``name``.

        Raises `UserError` if the name belongs to another kind: a plug-in never replaces one in
        silence. Also if the kind lacks what it must carry, or calls itself by another name.
        """
        for part in self.carries:
            if not hasattr(kind, part):
                raise UserError(
                    f"{self.what} {name!r}: has no {part!r}; set it in its class in {_source(kind)}"
                )
        if "name" in self.carries and kind.name != name:
            raise UserError(
                f"{self.what} {name!r}: its class has name = {kind.name!r}; write the same name in "
                "both places"
            )
        ours = name in self._files and _source(kind) != f"{self.package}.{name}"
        if ours or (name in self._kinds and self._kinds[name] is not kind):
            raise UserError(f"{self.what} {name!r} exists already; give yours another name")
        self._kinds[name] = kind

    def names(self) -> tuple[str, ...]:
        """Every name, in alphabetical order; imports nothing."""
        return tuple(sorted({*self._files, *self._kinds}))

    def __getitem__(self, name: str) -> Any:
        """The kind of that name, imported if need be. An unknown one is never taken for another."""
        if name not in self._kinds and name in self._files:
            module = f"{self.package}.{name}"
            importlib.import_module(module)
            assert name in self._kinds, (
                f"{module}: does not register the {self.what} {name!r}; the two have one name"
            )
        assert name in self._kinds, f"no {self.what} is named {name!r}: {', '.join(self.names())}"
        return self._kinds[name]

    def all(self) -> dict[str, Any]:
        """Every kind by name, in alphabetical order; imports them all."""
        return {name: self[name] for name in self.names()}

    def added(self) -> frozenset[str]:
        """Names that plug-ins have registered."""
        return frozenset(self._kinds.keys() - self._files)

    def source(self, name: str) -> str:
        """Name of the module that a registered kind was made in; empty: it does not say."""
        return _source(self._kinds[name])

    def forget(self, name: str) -> None:
        """Undo `register`, of a plug-in that failed."""
        del self._kinds[name]

    @cached_property
    def _files(self) -> frozenset[str]:
        folder = Path(__file__).resolve().parent.joinpath(*self.package.split(".")[1:])
        modules = pkgutil.iter_modules([str(folder)])
        return frozenset(module.name for module in modules if not module.name.startswith("_"))


def _source(kind: Any) -> str:
    """The module that a class, function or object was made in."""
    return getattr(kind, "__module__", "") or ""


# Data's half of an objective: fields, checks, sizes, layout. The model's half: loss and outputs.
OBJECTIVES = Registry("objective", "mmscale.data.objectives", ("name",))
LOSSES = Registry("objective's loss", "mmscale.model.objectives", ("order",))
IMAGE_STEMS = Registry("image stem", "mmscale.model.image_stems")
AUDIO_STEMS = Registry("audio stem", "mmscale.model.audio_stems")
OPTIMIZERS = Registry("optimizer", "mmscale.optim.optimizers", ("card", "moments", "elementwise"))
STRATEGIES = Registry("strategy", "mmscale.parallel.strategies", ("name",))
TRACKERS = Registry("tracker", "mmscale.train.trackers")
NORMALISERS = Registry("text normaliser", "mmscale.evaluate.normalisers")
LAYOUTS = Registry("layout", "mmscale.data.ingest.layouts", ("name", "summary"))

REGISTRIES = (
    OBJECTIVES, LOSSES, IMAGE_STEMS, AUDIO_STEMS, OPTIMIZERS, STRATEGIES, TRACKERS, NORMALISERS,
    LAYOUTS,
)  # fmt: skip
