"""How an answer is chosen token by token: greedily, by beam search, by sampling, from a set of
answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmscale.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Greedy by default.

    Args:
        max_new_tokens: longest answer, its closing <|end|> not counted.
        beams: hypotheses that are kept; above 1, beam search.
        length_penalty: beam search ranks by log-probability over
            ``((5 + length) / 6) ** length_penalty`` (Wu et al., GNMT, 2016); 0 ranks by
            probability.
        temperature: above 0, sampling from the distribution sharpened (below 1) or flattened
            (above 1).
        top_k: sample among so many likeliest tokens; 0: all.
        top_p: sample among the likeliest tokens that together have this probability (Holtzman et
            al., 2020).
        seed: of sampling; the same questions in the same order get the same answers, on whatever
            machine.
        labels: answers to choose from; None: any text.
    """

    max_new_tokens: int = 64
    beams: int = 1
    length_penalty: float = 0.6
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    labels: Sequence[str] | None = None

    def check(self) -> None:
        """Raise `UserError` naming what cannot be."""
        if self.max_new_tokens < 1:
            raise UserError(
                f"max_new_tokens={self.max_new_tokens}: an answer has at least one token"
            )
        if self.beams < 1:
            raise UserError(f"beams={self.beams}: keep at least one")
        if not 0 <= self.temperature < math.inf:
            raise UserError(
                f"temperature={self.temperature:g}: use 0 for the likeliest answer, about 1 to "
                "sample"
            )
        if self.beams > 1 and self.temperature > 0:
            raise UserError("beams and temperature: beam search does not sample; set one of them")
        if not 0 <= self.length_penalty < math.inf:
            raise UserError(
                f"length_penalty={self.length_penalty:g}: use 0 to rank by probability, or above"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p:g}: a probability above 0, at most 1")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k}: use 0 for all tokens")
        if self.labels is not None and (isinstance(self.labels, str) or not self.labels):
            raise UserError("labels: give a list of the answers to choose from")


class Choices:
    """The answers that are allowed, as a prefix tree of token ids; each ends with ``end``."""

    def __init__(self, answers: Sequence[Sequence[int]], end: int) -> None:
        self._next: dict[tuple[int, ...], set[int]] = {}
        for ids in answers:
            path = (*ids, end)
            for n, token in enumerate(path):
                self._next.setdefault(path[:n], set()).add(token)

    def after(self, prefix: Sequence[int]) -> list[int]:
        """Tokens that may follow, ascending."""
        return sorted(self._next.get(tuple(prefix), ()))
