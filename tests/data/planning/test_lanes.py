"""Lanes: every sequence has its turn once, and a lane reads its own part of the epoch."""

from collections import Counter

import numpy as np
import pytest

from mmscale import prf
from mmscale.data.planning.lanes import LaneCut, LaneTurns, choose_lanes
from mmscale.data.planning.mixture_schedule import Change, MixtureSchedule

NAMES = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("sequences", "groups", "lanes"),
    [
        (64, 1, 1),
        (64, 15, 8),
        (64, 300, 16),
        (60, 300, 15),
        (64, 6400, 64),
        (7, 5, 1),
        (7, 800, 7),
        (512, 10**6, 256),
        (13 * 17, 2000, 17),
    ],
)
def test_lanes_divide_a_step_and_leave_most_groups_closed(sequences, groups, lanes):
    assert choose_lanes(sequences, groups) == lanes


def test_turns_are_those_that_counting_gives():
    draws = prf.Draws(3)
    owned = draws.uniforms(36) < 0.4
    for lanes, shift in ((1, 0), (3, 0), (4, 5), (12, 11)):
        counter = LaneTurns(owned, 12, lanes, shift)
        turns = np.zeros(lanes, np.int64)
        for position in range(100):
            lane = (position + shift) % 12 * lanes // 12
            assert counter.lane(position) == lane
            assert np.array_equal(counter.before(position), turns)
            assert counter.of_lane_before(position) == turns[lane]
            turns[lane] += owned[position % 36]


def test_a_cut_deals_every_place_once_and_what_is_left_is_the_rest():
    cut = LaneCut([(0, 5), (9, 10), (20, 26)], np.array([4, 0, 5, 3]))
    rows = [[cut.place(lane, turn) for turn in range(turns)] for lane, turns in ((0, 4), (2, 5))]
    assert [place.at for place in rows[0]] == [0, 1, 2, 3]
    assert [(place.at, place.end) for place in rows[1]] == [
        (4, 5), (9, 10), (20, 23), (21, 23), (22, 23),
    ]  # fmt: skip
    assert cut.left(np.array([1, 0, 2, 3])) == [(1, 4), (20, 23)]
    assert cut.left(np.array([4, 0, 5, 3])) == []


@pytest.mark.parametrize("seed", range(16))
def test_every_sequence_of_an_epoch_once_whatever_the_weights_do(seed):
    """Against a simulation that knows nothing but which positions a set has."""
    draws = prf.Draws(prf.derive_key("lanes", seed))
    per_step = (6, 8, 12, 5)[seed % 4]
    lanes = [[n for n in range(1, per_step + 1) if per_step % n == 0][draws.integer(0, 2)]] * 3
    lanes[1] = per_step
    first = {name: float(draws.integer(0, 3)) for name in NAMES} | {"b": 1.5}
    changes = [Change(0, first, {name: draws.integer(1, 90) for name in NAMES})]
    for _ in range(draws.integer(0, 4)):
        at = changes[-1].position + draws.integer(1, 12) * per_step
        weights = {name: draws.uniform(0.1, 3) for name in NAMES if draws.uniform() < 0.6}
        changes.append(Change(at, weights, {"c": draws.integer(1, 40)} if seed % 3 == 0 else {}))
    caps = [draws.integer(0, 7) for _ in NAMES]
    schedule = MixtureSchedule(NAMES, changes, caps, per_step=per_step, lanes=lanes)
    end = min(1200, schedule.end or 1200)
    drawn = {}
    for position in range(end):
        turn = schedule.turn(position)
        if turn.current:
            place = schedule.place(position)
            number = position % per_step
            assert place.lane == number * lanes[turn.set_index] // per_step
            assert place.at < place.end
            drawn.setdefault((turn.set_index, turn.epoch), []).append(place.at)
    assert drawn
    for (owner, epoch), places in drawn.items():
        assert max(Counter(places).values()) == 1
        whole = next(
            change.sequences_per_epoch[NAMES[owner]]
            for change in reversed(changes)
            if NAMES[owner] in change.sequences_per_epoch
        )
        assert max(places) < whole
        if (owner, epoch + 1) in drawn:
            assert sorted(places) == list(range(whole))
    after = [*changes, Change(end + per_step, {"a": 3.0}, {})]
    longer = MixtureSchedule(NAMES, after, caps, per_step=per_step, lanes=lanes)
    currents = [position for position in range(end) if schedule.turn(position).current]
    assert [longer.place(p) for p in reversed(currents)] == [
        schedule.place(p) for p in reversed(currents)
    ], "neither what comes later nor the order of asking matters"


def test_a_lane_reads_a_stretch_of_its_own_without_gaps():
    changes = [Change(0, {"a": 1.0, "b": 0.37}, {"a": 1000, "b": 77})]
    schedule = MixtureSchedule(["a", "b"], changes, [0, 0], per_step=16, lanes=[8, 4])
    before = {}
    for position in range(900):
        turn, place = schedule.turn(position), schedule.place(position)
        key = turn.set_index, turn.epoch, place.lane
        if key in before:
            assert place.at == before[key] + 1, "front to back"
        before[key] = place.at
    stretches = sorted(at for (owner, _, _), at in before.items() if owner == 0)
    assert len(stretches) == 8 and np.diff(stretches).min() > 100, "far from each other"


def test_a_change_of_weights_in_an_epoch_cuts_what_is_left_anew():
    first = Change(0, {"a": 1.0, "b": 1.0}, {"a": 400, "b": 400})
    plain = MixtureSchedule(["a", "b"], [first], [0, 0], per_step=8, lanes=[8, 8])
    changed = MixtureSchedule(
        ["a", "b"], [first, Change(160, {"b": 0.2}, {})], [0, 0], per_step=8, lanes=[8, 8]
    )
    assert [plain.place(p) for p in range(160)] == [changed.place(p) for p in range(160)]
    # Every other number was a's; now all but a few are, and each has a stretch.
    lanes = {changed.place(p).lane for p in range(160, 320) if changed.turn(p).set_index == 0}
    assert lanes == set(range(8))
