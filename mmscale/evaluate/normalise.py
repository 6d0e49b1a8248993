"""Applying a text normaliser, which may be a plug-in's."""

from __future__ import annotations

from collections.abc import Sequence

from mmscale.errors import UserError
from mmscale.registry import NORMALISERS


def normalised(name: str, texts: Sequence[str]) -> list[str]:
    """``texts`` as the normaliser of that name gives them.

    Raises:
        UserError: it gives something else than a text.
    """
    normalise = NORMALISERS[name]
    out = [normalise(text) for text in texts]
    for text, given in zip(texts, out, strict=True):
        if not isinstance(given, str):
            raise UserError(
                f"text normaliser {name!r}: gives {given!r:.60} for {text!r:.60}; have it return "
                "a string"
            )
    return out
