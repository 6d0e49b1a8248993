"""Dealing the sequences of a step to ranks: equally many each, at costs as equal as can be."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

# Most exchanges after the first deal, as a multiple of the ranks; few are ever needed.
_ROUNDS = 2
# Ranks that are looked at for an exchange, the cheapest first.
_PARTNERS = 16


def deal(costs: Sequence[float], world: int) -> list[list[int]]:
    """Numbers of the items of every rank, ascending; a pure function of its arguments.

    The dearest item goes first, each to the rank with the least so far that still has room (longest
    processing time first; Graham, "Bounds on multiprocessing timing anomalies", 1969). Then the
    dearest rank exchanges items with others as long as that makes it cheaper.
    """
    assert len(costs) % world == 0, "check_world was not called"
    per_rank = len(costs) // world
    hands: list[list[int]] = [[] for _ in range(world)]
    load = [0.0] * world
    heap = [(0.0, rank) for rank in range(world)]
    for item in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        _, taker = heapq.heappop(heap)
        load[taker] += costs[item]
        hands[taker].append(item)
        if len(hands[taker]) < per_rank:
            heapq.heappush(heap, (load[taker], taker))
    for _ in range(_ROUNDS * world if per_rank > 1 else 0):
        if not _exchange(hands, load, costs):
            break
    return [sorted(hand) for hand in hands]


def _exchange(hands: list[list[int]], load: list[float], costs: Sequence[float]) -> bool:
    """One exchange between the dearest rank and the cheap one where it helps most; False if none
    helps.
    """
    dearest = max(range(len(hands)), key=lambda rank: (load[rank], -rank))
    own = np.array([costs[item] for item in hands[dearest]])
    best, choice = load[dearest], None
    for rank in heapq.nsmallest(_PARTNERS, range(len(hands)), key=lambda rank: (load[rank], rank)):
        moved = own[:, None] - np.array([costs[item] for item in hands[rank]])
        # The larger of the two loads after the exchange.
        peak = np.maximum(load[dearest] - moved, load[rank] + moved)
        give, take = divmod(int(np.argmin(peak)), peak.shape[1])
        if peak[give, take] < best * (1 - 1e-9):
            best, choice = float(peak[give, take]), (rank, give, take, float(moved[give, take]))
    if choice is None:
        return False
    rank, give, take, moved_cost = choice
    hands[dearest][give], hands[rank][take] = hands[rank][take], hands[dearest][give]
    load[dearest], load[rank] = load[dearest] - moved_cost, load[rank] + moved_cost
    return True
