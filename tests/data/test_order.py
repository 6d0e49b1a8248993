"""Bins, sequence order and mixture: the promises the whole system rests on."""

import numpy as np
import pytest

from mmscale import prf
from mmscale.data.bins import best_fit, bin_count, shuffled_bins
from mmscale.data.mixture import PERIOD, Mixture
from mmscale.data.order import SequenceOrder
from mmscale.errors import UserError


def random_lengths(count, high, key=1):
    return (1 + prf.uniform(prf.derive_key("lengths", key), count) * high).astype(np.uint32)


def make_order(lengths, key=5, **kwargs):
    sizes = {"block": 16, "group_blocks": 4, "window_groups": 3, **kwargs}
    return SequenceOrder(lengths, 256, key=key, **sizes)


def test_best_fit_takes_the_fullest_bin_that_fits():
    lengths = np.array([6, 7, 3, 4])
    assert best_fit(lengths, np.arange(4), 10) == [[0, 3], [1, 2]]


@pytest.mark.parametrize("high", [3, 40, 256])
def test_shuffled_bins_keep_the_count_and_every_item(high):
    lengths = np.minimum(random_lengths(500, high), 256)
    count = bin_count(lengths, 256)
    seen = []
    for key in range(4):
        bins = shuffled_bins(lengths, 256, count, key)
        assert len(bins) == count
        assert sorted(item for bin_ in bins for item in bin_) == list(range(500))
        assert all(lengths[bin_].sum() <= 256 for bin_ in bins)
        seen.append(bins)
    assert seen[0] == shuffled_bins(lengths, 256, count, 0)
    assert seen[0] != seen[1]


def test_bin_count_does_not_depend_on_the_order_of_the_samples():
    lengths = random_lengths(300, 90)
    shuffled = lengths[prf.Permutation(3, 300)(np.arange(300))]
    assert bin_count(lengths, 256) == bin_count(shuffled, 256)


def test_packing_is_tight():
    lengths = random_lengths(4096, 80)
    assert lengths.sum() / (bin_count(lengths, 1024) * 1024) > 0.98


@pytest.mark.parametrize("samples", [1, 15, 64, 65, 1000])
def test_every_sample_exactly_once_an_epoch(samples):
    lengths = random_lengths(samples, 100)
    lengths[::7] = 0  # left out
    if not lengths.any():
        lengths[0] = 5
    order = make_order(lengths)
    per_epoch = order.sequences_per_epoch
    for epoch in range(3):
        seen = []
        for position in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            told, members = order.sequence(position)
            assert told == epoch
            assert lengths[members].sum() <= 256
            seen += members.tolist()
        assert sorted(seen) == np.nonzero(lengths)[0].tolist()


def test_sequences_are_a_function_of_position_alone():
    lengths = random_lengths(1000, 100)
    forward = make_order(lengths)
    total = 2 * forward.sequences_per_epoch
    expected = [forward.sequence(position)[1].tolist() for position in range(total)]
    backward = make_order(lengths)
    assert [backward.sequence(p)[1].tolist() for p in reversed(range(total))] == expected[::-1]
    other = make_order(lengths, key=6)
    assert [other.sequence(p)[1].tolist() for p in range(total)] != expected
    assert expected[: total // 2] != expected[total // 2 :], "epochs must differ"


def test_reads_stay_inside_a_window():
    lengths = random_lengths(4000, 100)
    order = make_order(lengths)
    for position in range(0, order.sequences_per_epoch, 17):
        _, members = order.sequence(position)
        assert len(np.unique(members // 16)) <= 4, "a sequence reads from one group's blocks only"


def test_mixture_follows_the_weights_everywhere():
    weights = [3.0, 1.0, 0.5]
    mixture = Mixture(["a", "b", "c"], weights)
    turns = np.zeros(3, np.int64)
    for position in range(2 * PERIOD + 100):
        assert np.array_equal(mixture.turns_before(position), turns)
        owner, turn = mixture.turn(position)
        assert turn == turns[owner]
        turns[owner] += 1
        drift = np.abs(turns - (position + 1) * np.array(weights) / sum(weights))
        assert drift.max() <= 2.0
    assert turns.sum() == 2 * PERIOD + 100


def test_mixture_refuses_a_weight_that_rounds_to_nothing():
    with pytest.raises(UserError, match=r"data\.sets\.b\.weight"):
        Mixture(["a", "b"], [1.0, 1e-6])
