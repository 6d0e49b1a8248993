"""Bins, sequence order and mixture: the promises the whole system rests on."""

import numpy as np
import pytest

from mmscale import prf
from mmscale.data.planning.epoch_order import SequenceOrder
from mmscale.data.planning.groups import GroupLayout, count_groups
from mmscale.data.planning.mixture import PERIOD, Mixture
from mmscale.data.planning.packing import _best_fit_count, best_fit, bin_count, shuffled_bins
from mmscale.data.planning.sample_sizes import SampleSizes, total_names
from mmscale.errors import UserError
from mmscale.registry import OBJECTIVES


def random_lengths(count, high, key=1):
    return (1 + prf.uniform(prf.derive_key("lengths", key), count) * high).astype(np.uint32)


class Lengths:
    """A measure of samples whose lengths are given."""

    def __init__(self, lengths):
        self.lengths = lengths.astype(np.int64)

    def sizes(self, samples):
        tokens, zero = self.lengths[samples], np.zeros(len(samples), np.int64)
        return SampleSizes(
            rows=np.arange(len(samples)), parts=zero,
            tokens=tokens, predictions=zero, squares=tokens**2, image_tokens=zero,
            audio_tokens=zero, oversize=zero.astype(bool), refused_tokens=zero[:0],
            counts={name: zero.astype(float) for name in OBJECTIVES.names()}
            | {"next_token": tokens * 0.25},
        )  # fmt: skip


def make_order(lengths, key=5):
    measure = Lengths(lengths)
    counts = count_groups(len(lengths), 16, measure, 256, group_blocks=4)
    layout = GroupLayout(len(lengths), 16, counts.blocks)
    return SequenceOrder(layout, counts.sequences, measure, 256, window_groups=3, key=key)


def all_epochs(order, epochs):
    return [
        order.sequence(e, p).samples.tolist()
        for e in range(epochs)
        for p in range(order.sequences_per_epoch)
    ]


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


def test_bin_count_is_never_above_best_fit_decreasing_nor_below_the_tokens():
    draws = prf.Draws(9)
    fewer = 0
    for _ in range(300):
        capacity, count = draws.integer(5, 1100), draws.integer(1, 300)
        least, most = sorted(draws.integer(1, capacity + 1) for _ in range(2))
        lengths = (least + draws.uniforms(count) * (most - least)).astype(np.int64)
        needed = len(best_fit(lengths, np.argsort(-lengths, kind="stable"), capacity))
        assert _best_fit_count(lengths, capacity) == needed
        assert -(-int(lengths.sum()) // capacity) <= bin_count(lengths, capacity) <= needed
        fewer += bin_count(lengths, capacity) < needed
    assert fewer > 10, "the balanced way was of no use"


def test_bins_are_equally_full():
    lengths = random_lengths(3000, 80)
    for bins in (shuffled_bins(lengths, 1024, bin_count(lengths, 1024), key) for key in range(3)):
        loads = [int(lengths[items].sum()) for items in bins]
        assert max(loads) <= 1024 and min(loads) > 0.95 * max(loads)


def test_packing_is_tight():
    lengths = random_lengths(4096, 80)
    assert lengths.sum() / (bin_count(lengths, 1024) * 1024) > 0.99


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
        for position in range(per_epoch):
            sequence = order.sequence(epoch, position)
            members, totals = sequence.samples, sequence.totals
            tokens = lengths[members].astype(np.int64)
            assert tokens.sum() <= 256
            of = dict(zip(total_names(), totals, strict=True))
            assert (of["tokens"], of["squares"]) == (tokens.sum(), (tokens**2).sum())
            assert of["next_token"] == tokens.sum() / 4
            assert sum(totals) == of["tokens"] + of["squares"] + of["next_token"], "no other total"
            seen += members.tolist()
        assert sorted(seen) == np.nonzero(lengths)[0].tolist()


def test_sequences_are_a_function_of_position_alone():
    lengths = random_lengths(1000, 100)
    forward = make_order(lengths)
    expected = all_epochs(forward, 2)
    backward = make_order(lengths)
    places = [(e, p) for e in range(2) for p in range(forward.sequences_per_epoch)]
    assert [backward.sequence(*place).samples.tolist() for place in reversed(places)] == expected[
        ::-1
    ]
    assert all_epochs(make_order(lengths, key=6), 2) != expected
    half = forward.sequences_per_epoch
    assert expected[:half] != expected[half:], "epochs must differ"


def test_many_at_once_are_those_one_by_one_and_may_be_more_than_are_kept():
    lengths = random_lengths(40_000, 100)
    order, places = make_order(lengths), [(e, p) for p in range(0, 4000, 3) for e in (1, 0)]
    together = [sequence.samples.tolist() for sequence in order.sequences(places)]
    alone = make_order(lengths)
    assert together == [alone.sequence(*place).samples.tolist() for place in places]
    assert len({sequence.window for sequence in order.sequences(places)}) > 100


def test_reads_stay_inside_a_window():
    lengths = random_lengths(4000, 100)
    order = make_order(lengths)
    for position in range(0, order.sequences_per_epoch, 17):
        members = order.sequence(0, position).samples
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


def test_position_after_is_the_inverse_of_turns_before():
    mixture = Mixture(["a", "b", "c"], [5.0, 0.0, 0.7])
    for owner in (0, 2):
        for turns in (1, 2, 499, int(mixture.shares[owner]), int(mixture.shares[owner]) + 1, 9000):
            position = mixture.position_after(owner, turns)
            assert mixture.turns_before(position)[owner] == turns
            assert mixture.turns_before(position - 1)[owner] == turns - 1


def test_mixture_refuses_a_weight_that_rounds_to_nothing():
    with pytest.raises(UserError, match=r"data\.sets\.b\.weight"):
        Mixture(["a", "b"], [1.0, 1e-6])
