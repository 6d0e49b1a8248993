"""Texts are compared as they are, white space and all."""

from __future__ import annotations

from mmscale.registry import NORMALISERS


def none(text: str) -> str:
    """The text itself."""
    return text


NORMALISERS.register("none", none)
