"""Dealing sequences to ranks."""

import numpy as np
import pytest

from mmscale import prf
from mmscale.data.planning.rank_balance import deal


def loads(costs, hands):
    return np.array([sum(costs[item] for item in hand) for hand in hands])


@pytest.mark.parametrize(("items", "world"), [(1, 1), (8, 8), (64, 8), (96, 3), (1024, 256)])
def test_every_item_once_and_equally_many_on_every_rank(items, world):
    costs = prf.uniform(prf.derive_key("costs", items), items).tolist()
    hands = deal(costs, world)
    assert sorted(item for hand in hands for item in hand) == list(range(items))
    assert {len(hand) for hand in hands} == {items // world}
    assert hands == deal(list(costs), world)


def test_exchanges_balance_what_the_first_deal_cannot():
    costs = [5.1] * 22 + [4.7] * 21 + [3.5] * 21
    rank_loads = loads(costs, deal(costs, 8))
    assert rank_loads.max() < 1.01 * rank_loads.mean()


def test_one_dear_item_is_not_made_worse():
    costs = [100.0] + [1.0] * 15
    rank_loads = sorted(loads(costs, deal(costs, 4)))
    assert rank_loads == [4, 4, 4, 103]
