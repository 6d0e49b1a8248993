"""Groups: cut once from the lengths, where the last sequence is fullest."""

import numpy as np
import pytest
from test_epoch_order import Lengths, random_lengths

from mmscale import prf
from mmscale.data.planning.groups import GroupCounts, GroupLayout, count_groups


def test_every_sample_is_in_one_group():
    lengths = random_lengths(5003, 60)
    counts = count_groups(5003, 16, Lengths(lengths), 256)
    layout = GroupLayout(5003, 16, counts.blocks)
    members = layout.members(list(range(layout.groups)))
    assert layout.members([3, 0])[1].tolist() == members[0].tolist()
    assert sorted(np.concatenate(members).tolist()) == list(range(5003))
    assert all(len(np.unique(samples // 16)) == blocks for samples, blocks in zip(
        members, counts.blocks.tolist(), strict=True
    ))  # fmt: skip
    assert counts.blocks.min() >= 8 and counts.sequences.min() >= 16
    assert counts.tokens == lengths.sum() and counts.samples == 5003


@pytest.mark.parametrize(("high", "capacity"), [(80, 4096), (30, 1024), (250, 1024), (9, 128)])
def test_small_groups_are_as_full_as_large_ones(high, capacity):
    lengths = random_lengths(60_000, high)
    counts = count_groups(60_000, 16, Lengths(lengths), capacity)
    assert counts.tokens / (counts.sequences.sum() * capacity) > 0.985
    assert np.median(counts.sequences) < 60


def test_processes_and_damage_change_nothing():
    lengths = random_lengths(150_000, 60)
    one = count_groups(150_000, 16, Lengths(lengths), 512)
    two = count_groups(150_000, 16, Lengths(lengths), 512, workers=2)
    assert np.array_equal(one.to_array(), two.to_array())
    again = GroupCounts.from_array(one.to_array())
    assert np.array_equal(again.to_array(), one.to_array())


def test_a_fixed_size_is_kept_across_sections():
    lengths = random_lengths(4 * 9001, 60)
    counts = count_groups(4 * 9001, 4, Lengths(lengths), 256, group_blocks=7)
    assert set(counts.blocks[:-1].tolist()) == {7} and counts.blocks.sum() == 9001


@pytest.mark.parametrize("samples", [1, 7, 130])
def test_a_set_that_is_smaller_than_a_group_is_one(samples):
    counts = count_groups(samples, 16, Lengths(random_lengths(samples, 20)), 256)
    assert counts.blocks.tolist() == [-(-samples // 16)]


def test_blocks_of_which_nothing_is_used_are_in_a_group_too():
    lengths = random_lengths(20_000, 50)
    lengths[prf.uniform(1, 20_000) < 0.97] = 0
    counts = count_groups(20_000, 16, Lengths(lengths), 256)
    assert counts.blocks.sum() == 1250 and counts.blocks.max() <= 2 * 128
    empty = count_groups(20_000, 16, Lengths(np.zeros(20_000)), 256)
    assert empty.samples == 0 and empty.blocks.sum() == 1250 and not empty.sequences.any()
