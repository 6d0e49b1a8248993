"""Scores from true and predicted answers. Plain arrays and strings in, plain numbers out."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jiwer
import numpy as np
from numpy.typing import NDArray

RECALL_AT = (1, 5, 10)

# Scripts written without spaces between words: Han (with extensions and compatibility forms), kana,
# Bopomofo.
_UNSPACED = re.compile(
    "([\u3005-\u3007\u3040-\u30ff\u3105-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9d\U0001b000-\U0001b16f\U00020000-\U000323af])"
)
_NEVER = np.iinfo(np.int64).max
_CHUNK = 1024  # queries whose similarities exist at once


def accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of predictions that equal the truth. At least one of them."""
    assert len(truth) == len(predicted) > 0
    return sum(t == p for t, p in zip(truth, predicted, strict=True)) / len(truth)


def confusion(
    truth: Sequence[str], predicted: Sequence[str], labels: Sequence[str]
) -> NDArray[np.int64]:
    """Counts, int64 [labels, labels]: row the truth, column the prediction; ``labels`` are all
    different.
    """
    number = {label: n for n, label in enumerate(labels)}
    assert len(number) == len(labels)
    counts = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, ([number[t] for t in truth], [number[p] for p in predicted]), 1)
    return counts


def macro_f1(counts: NDArray[np.int64]) -> float:
    """Unweighted mean of F1 over the classes of a confusion matrix that occur as truth or
    prediction.
    """
    hits = counts.diagonal()
    either = counts.sum(axis=0) + counts.sum(axis=1)
    present = either > 0
    assert present.any()
    return float((2.0 * hits[present] / either[present]).mean())


def words(text: str) -> list[str]:
    """Words for the word error rate: split at white space; a Chinese or Japanese character is a
    word.
    """
    return _UNSPACED.sub(r" \1 ", text).split()


def word_error_rate(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Substituted, deleted and inserted words over true words, summed over all texts before
    dividing.

    Counted by `jiwer` on the texts as they are: case and punctuation matter. For Chinese and
    Japanese, whose words have no spaces between them, a word is a character (mixed error rate).
    """
    return _error_rate([words(text) for text in truth], [words(text) for text in predicted])


def character_error_rate(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Like `word_error_rate` with characters for words; each that is white space counts as one."""
    return _error_rate([list(t) for t in truth], [list(p) for p in predicted])


def recall_at(
    query: NDArray[np.float32],
    candidate: NDArray[np.float32],
    query_match: Sequence[str],
    candidate_match: Sequence[str],
    *,
    leave_out_own: bool = False,
) -> dict[str, float]:
    """Share of queries with a match among the k most similar candidates, ``{"recall@1": …}`` for
    `RECALL_AT`.

    Args:
        query: float32 [Q, E].
        candidate: float32 [C, E]; the similarity is the dot product.
        query_match, candidate_match: a candidate is a hit if its value equals the query's: sample
            numbers for instances, labels for classes.
        leave_out_own: candidate n is query n itself, and is not searched.

    Of equally similar candidates the misses count as the more similar, so that a model that gives
    everything the same embedding finds nothing. A query without a matching candidate is a miss.
    """
    assert len(query) == len(query_match) > 0 and len(candidate) == len(candidate_match)
    number = {value: n for n, value in enumerate(dict.fromkeys([*query_match, *candidate_match]))}
    query_code = np.array([number[value] for value in query_match])
    candidate_code = np.array([number[value] for value in candidate_match])
    before = np.zeros(len(query), np.int64)  # misses that come before the first hit
    for first in range(0, len(query), _CHUNK):
        rows = slice(first, first + _CHUNK)
        similarity = query[rows] @ candidate.T
        hit = query_code[rows, None] == candidate_code
        if leave_out_own:
            own = np.arange(first, first + len(similarity))
            similarity[np.arange(len(own)), own] = -np.inf
            hit[np.arange(len(own)), own] = False
        best = np.fmax.reduce(np.where(hit, similarity, np.nan), axis=1, initial=-np.inf)
        # What is no number counts as the more similar.
        misses = ~hit & ~(similarity < best[:, None])
        before[rows] = np.where(best > -np.inf, misses.sum(axis=1), _NEVER)
    return {f"recall@{k}": float((before < k).mean()) for k in RECALL_AT}


def _error_rate(truth: list[list[str]], predicted: list[list[str]]) -> float:
    assert len(truth) == len(predicted)
    total = sum(len(units) for units in truth)
    # jiwer 3 refuses empty truths; everything said in their place is an insertion.
    errors = sum(len(p) for t, p in zip(truth, predicted, strict=True) if not t)
    pairs = [(_spell(t), _spell(p)) for t, p in zip(truth, predicted, strict=True) if t]
    if pairs:
        counts = jiwer.process_words([t for t, _ in pairs], [p for _, p in pairs])
        errors += counts.substitutions + counts.deletions + counts.insertions
    return errors / total if total else float(errors > 0)


def _spell(units: list[str]) -> str:
    """Units as words for jiwer, which splits at white space: a unit that is such becomes visible.

    A space is one character then; other white space is spelt with its number, so that no other unit
    equals it.
    """
    return " ".join(_visible(unit) if unit.isspace() else unit for unit in units)


def _visible(space: str) -> str:
    return "\u2423" if space == " " else f"\u2423{ord(space):x}"
