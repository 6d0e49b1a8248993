"""Any run of white space is one space; none at the ends. Case and punctuation stay."""

from __future__ import annotations

from mmscale.registry import NORMALISERS


def whitespace(text: str) -> str:
    """``"  a \\n b "`` → ``"a b"``."""
    return " ".join(text.split())


NORMALISERS.register("whitespace", whitespace)
