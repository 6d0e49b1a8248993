"""Typing errors: a share of a text's characters is exchanged, left out, repeated or swapped with
the next.

As in Belinkov and Bisk, "Synthetic and natural noise both break neural machine translation" (2018);
new characters are drawn from the text itself, so that a Chinese text stays Chinese.
"""

from __future__ import annotations

from mmscale.prf import Draws


def with_typing_errors(text: str, share: float, key: int) -> str:
    """``text`` with each character changed with probability ``share``; equal keys change alike.
    Never empty.
    """
    draws = Draws(key)
    characters = list(text)
    out: list[str] = []
    at = 0
    while at < len(characters):
        here = characters[at]
        at += 1
        if draws.uniform() >= share:
            out.append(here)
            continue
        kind = draws.integer(0, 4)
        if kind == 0:
            out.append(characters[draws.integer(0, len(characters))])
        elif kind == 1:
            out += [here, here]
        elif kind == 2 and at < len(characters):
            out += [characters[at], here]
            at += 1
        # else it is left out
    return "".join(out) or text
