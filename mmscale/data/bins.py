"""Packing lengths into bins of fixed capacity: best fit decreasing, and a shuffled variant with the same count.

The number of bins that best-fit-decreasing needs depends on the *multiset* of lengths alone. It can therefore
be stored once per group of samples, while the contents of the bins are drawn anew every epoch; this is what
lets a step find its sequences without a pass over the data set (see `order`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmscale import prf

# Relative jitter of the sorting key, tried in turn. Zero is plain best-fit-decreasing and always fits.
_JITTER = (0.5, 0.1, 0.02, 0.0)


def best_fit(lengths: NDArray[np.integer], order: NDArray[np.integer], capacity: int) -> list[list[int]]:
    """Place items in the given order, each into the fullest bin that still holds it.

    Args:
        lengths: int [n], each in 1..capacity.
        order: int [n], the items in the order they are placed.
        capacity: tokens of one bin.

    Returns:
        Items of every bin. Free space is kept as one big integer whose set bits are the amounts of free
        space that occur, so finding the best bin is a shift and a bit count, whatever the number of bins.
    """
    bins: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0
    for item, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            chosen = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
            bins[chosen].append(item)
        else:
            space, chosen = capacity, len(bins)
            bins.append([item])
        left = space - length
        if left:
            by_space[left].append(chosen)
            spaces |= 1 << left
    return bins


def bin_count(lengths: NDArray[np.integer], capacity: int) -> int:
    """Bins that `shuffled_bins` fills with these lengths, for every key."""
    return len(best_fit(lengths, np.argsort(-lengths.astype(np.int64), kind="stable"), capacity))


def shuffled_bins(lengths: NDArray[np.integer], capacity: int, count: int, key: int) -> list[list[int]]:
    """Pack items into exactly ``count == bin_count(lengths, capacity)`` bins, differently for every key.

    Sorting by exact length would put the same lengths together every epoch, so the sorting key is jittered
    as far as the count allows. A pure function of its arguments.
    """
    draws = prf.Draws(prf.derive_key(key, "bins"))
    tie_break = draws.uniforms(len(lengths))
    for jitter in _JITTER:
        sort_key = lengths * (1.0 + jitter * draws.uniforms(len(lengths))) if jitter else lengths
        order = np.lexsort((tie_break, -sort_key))
        bins = best_fit(lengths, order, capacity)
        if len(bins) <= count:
            return bins + [[] for _ in range(count - len(bins))]
    raise AssertionError("best-fit-decreasing needed more bins than it counted; the count is stale")
