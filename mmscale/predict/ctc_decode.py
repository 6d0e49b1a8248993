"""From the log-probabilities of every audio token to a transcript (connectionist temporal
classification).
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
from numpy.typing import NDArray


def greedy_ctc(log_probs_TV: NDArray[np.float32], blank: int) -> list[int]:
    """The likeliest alignment, with repeats and blanks taken out (Graves et al., 2006)."""
    return [token for token, _ in groupby(log_probs_TV.argmax(axis=1).tolist()) if token != blank]


def beam_ctc(
    log_probs_TV: NDArray[np.float32], blank: int, beams: int, candidates: int = 40
) -> list[tuple[list[int], float]]:
    """Prefix beam search: transcripts and their log-probabilities over all alignments, the best
    first.

    Hannun et al., "First-pass large vocabulary continuous speech recognition using bi-directional
    recurrent DNNs" (2014). ``candidates``: likeliest tokens of each position that may extend a
    prefix.
    """
    # Of each prefix: log-probability of its alignments that end with a blank, and of those that end
    # with a token.
    prefixes: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -np.inf)}
    for log_probs in log_probs_TV.astype(np.float64):
        likely = np.argsort(-log_probs, kind="stable")[:candidates].tolist()
        grown: dict[tuple[int, ...], tuple[float, float]] = {}

        def add(prefix: tuple[int, ...], by_blank: float, by_token: float) -> None:
            if max(by_blank, by_token) == -np.inf:
                return  # no alignment
            # It is called within this turn of the loop alone.
            old = grown.get(prefix, (-np.inf, -np.inf))  # noqa: B023
            grown[prefix] = (  # noqa: B023
                float(np.logaddexp(old[0], by_blank)),
                float(np.logaddexp(old[1], by_token)),
            )

        for prefix, (by_blank, by_token) in prefixes.items():
            either = float(np.logaddexp(by_blank, by_token))
            add(prefix, either + log_probs[blank], -np.inf)
            if prefix:
                add(prefix, -np.inf, by_token + log_probs[prefix[-1]])
            for token in likely:
                if token != blank:
                    # A token that repeats the last one is a new one only after a blank.
                    source = by_blank if prefix and token == prefix[-1] else either
                    add((*prefix, token), -np.inf, source + log_probs[token])
        best = sorted(grown.items(), key=lambda item: (-np.logaddexp(*item[1]), item[0]))[:beams]
        prefixes = dict(best)
    return [(list(prefix), float(np.logaddexp(*both))) for prefix, both in prefixes.items()]
