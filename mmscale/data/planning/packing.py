"""Packing lengths into bins of fixed capacity, with a number of bins that is known beforehand.

Two ways are used. *Balanced*: longest first, each into the emptiest bin (longest processing time
first; Graham, "Bounds on multiprocessing timing anomalies", 1969), and a few exchanges where one
overflows; all bins end nearly equally full, so that sequences cost the same. *Best fit*: longest
first, each into the fullest bin that still holds it; it always fits, and is the better one for
items that are large beside a bin.

The number of bins either needs depends on the *multiset* of lengths alone. It can therefore be
stored once per group of samples, while the contents of the bins are drawn anew every epoch; this is
what lets a step find its sequences without a pass over the data set (see `order`).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right

import numpy as np
from numpy.typing import NDArray

from mmscale import prf

# Relative jitter of the sorting key: sorting by exact length would put the same lengths together
# every epoch.
_JITTER = 0.2
# Most exchanges of one overfull bin.
_EXCHANGES = 4


def best_fit(
    lengths: NDArray[np.integer], order: NDArray[np.integer], capacity: int
) -> list[list[int]]:
    """Place items in the given order, each into the fullest bin that still holds it.

    Args:
        lengths: int [n], each in 1..capacity.
        order: int [n], the items in the order they are placed.
        capacity: tokens of one bin.

    Returns:
        Items of every bin. Free space is kept as one big integer whose set bits are the amounts of
        free space that occur, so finding the best bin is a shift and a bit count, whatever the
        number of bins.
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


def balanced(
    lengths: NDArray[np.integer], order: NDArray[np.integer], capacity: int, count: int
) -> list[list[int]] | None:
    """Place items in the given order, each into the emptiest of ``count`` bins; None if they do not
    fit.

    Bins that overflow in the end exchange items with the emptiest. Args and items as `best_fit`'s.
    """
    bins: list[list[int]] = [[] for _ in range(count)]
    # Load and number of a bin in one integer, which the heap compares faster than a pair.
    heap = list(range(count))
    sizes = lengths.tolist()
    for item, length in zip(
        order.tolist(), (lengths[order].astype(np.int64) * count).tolist(), strict=True
    ):
        loaded = heap[0] + length
        bins[loaded % count].append(item)
        heapq.heapreplace(heap, loaded)
    loads = [0] * count
    for loaded in heap:
        loads[loaded % count] = loaded // count
    return bins if max(loads) <= capacity or _relieve(bins, loads, sizes, capacity) else None


def _relieve(bins: list[list[int]], loads: list[int], sizes: list[int], capacity: int) -> bool:
    """Exchange items of overfull bins for smaller ones of the emptiest, in place; whether all fit
    then.
    """
    over = sorted(
        (number for number in range(len(bins)) if loads[number] > capacity),
        key=lambda number: (-loads[number], number),
    )
    room = [(loads[number], number) for number in range(len(bins)) if loads[number] < capacity]
    if sum(loads[number] - capacity for number in over) > sum(capacity - load for load, _ in room):
        return False
    heapq.heapify(room)
    for heavy in over:
        for _ in range(_EXCHANGES):
            if loads[heavy] <= capacity or not room:
                break
            load, light = heapq.heappop(room)
            gain = _exchange(
                bins[heavy], bins[light], sizes, loads[heavy] - capacity, capacity - load
            )
            loads[heavy], loads[light] = loads[heavy] - gain, load + gain
            if gain and loads[light] < capacity:
                heapq.heappush(room, (loads[light], light))
        if loads[heavy] > capacity:
            return False
    return True


def _exchange(heavy: list[int], light: list[int], sizes: list[int], excess: int, room: int) -> int:
    """Exchange the two items that best relieve ``heavy`` within the ``room`` of ``light``; tokens
    moved: the least that is enough, or else the most there is.
    """
    takes = sorted([(sizes[item], take) for take, item in enumerate(light)])
    ascending = [size for size, _ in takes]
    best, pair = room + 1, (0, 0)
    for give, item in enumerate(heavy):
        size = sizes[item]
        at = bisect_right(ascending, size - excess) - 1
        if at >= 0 and size - ascending[at] < best:
            best, pair = size - ascending[at], (give, takes[at][1])
            if best == excess:
                break
    if best > room:
        best = 0
        for give, item in enumerate(heavy):
            size = sizes[item]
            at = bisect_left(ascending, size - room)
            if at < len(ascending) and size - ascending[at] > best:
                best, pair = size - ascending[at], (give, takes[at][1])
    if best:
        give, take = pair
        heavy[give], light[take] = light[take], heavy[give]
    return best


def bin_count(lengths: NDArray[np.integer], capacity: int) -> int:
    """Bins that `shuffled_bins` fills with these lengths, for every key.

    At most what best-fit-decreasing needs; fewer where the balanced way manages.
    """
    if not len(lengths):
        return 0
    fewest = -(-int(lengths.sum()) // capacity)
    most = _best_fit_count(lengths, capacity)
    descending = np.argsort(-lengths.astype(np.int64), kind="stable")
    # Bisection, although success need not be monotone: any number that was tried and fits is right.
    while fewest < most:
        middle = (fewest + most) // 2
        if balanced(lengths, descending, capacity, middle) is None:
            fewest = middle + 1
        else:
            most = middle
    return most


def shuffled_bins(
    lengths: NDArray[np.integer], capacity: int, count: int, key: int
) -> list[list[int]]:
    """Pack items into exactly ``count == bin_count(lengths, capacity)`` bins, differently for every
    key.

    A pure function of its arguments. Bins may be empty where best fit needs fewer than were
    counted.
    """
    if not count:
        return []
    draws = prf.Draws(prf.derive_key(key, "bins"))
    tie_break, jitter = draws.uniforms(len(lengths)), 1.0 + _JITTER * draws.uniforms(len(lengths))
    jittered, exact = (
        np.argsort(-(lengths * jitter), kind="stable"),
        np.lexsort((tie_break, -lengths.astype(np.int64))),
    )
    for order in (jittered, exact):
        balanced_bins = balanced(lengths, order, capacity, count)
        if balanced_bins is not None:
            return balanced_bins
    for order in (jittered, exact):
        bins = best_fit(lengths, order, capacity)
        if len(bins) <= count:
            return bins + [[] for _ in range(count - len(bins))]
    raise AssertionError("packing needed more bins than were counted; the count is stale")


def _best_fit_count(lengths: NDArray[np.integer], capacity: int) -> int:
    """Bins of best-fit-decreasing, over the histogram of lengths.

    Items of one length fill the tightest bins first, as many as each holds, so all bins with the
    same free space are dealt with at once.
    """
    items = np.bincount(lengths, minlength=capacity + 1)
    bins_by_space: dict[int, int] = {}
    total = 0
    for length in np.flatnonzero(items)[::-1].tolist():
        left = int(items[length])
        for space in sorted(space for space in bins_by_space if space >= length):
            left -= _fill(bins_by_space, space, bins_by_space.pop(space), length, left)
            if not left:
                break
        if left:
            opened = -(-left // (capacity // length))
            total += opened
            _fill(bins_by_space, capacity, opened, length, left)
    return total


def _fill(bins_by_space: dict[int, int], space: int, bins: int, length: int, items: int) -> int:
    """Put up to ``items`` items into ``bins`` bins with ``space`` left, one bin after another;
    returns how many.
    """
    per_bin = space // length
    full, rest = min(bins, items // per_bin), 0
    _add(bins_by_space, space - per_bin * length, full)
    if full < bins:
        rest = items - full * per_bin
        _add(bins_by_space, space - rest * length, 1)
        _add(bins_by_space, space, bins - full - 1)
    return full * per_bin + rest


def _add(bins_by_space: dict[int, int], space: int, bins: int) -> None:
    if bins and space:
        bins_by_space[space] = bins_by_space.get(space, 0) + bins
