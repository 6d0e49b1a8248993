"""The schedule of a whole run against a plain simulation of it."""

import pytest

from mmscale import prf
from mmscale.data.planning.mixture import Mixture
from mmscale.data.planning.mixture_schedule import Change, MixtureSchedule
from mmscale.errors import UserError

NAMES = ["a", "b", "c"]


def simulate(changes, max_epochs, positions):
    """One position after another: (set, epoch, place in the epoch), and the epochs begun so far."""
    weights, per_epoch = {}, {}
    epoch, inside = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0)
    mixture, start, turns, was_ended = None, 0, [], []
    for position in range(positions):
        for change in changes:
            if change.position == position:
                weights |= change.weights
                for name, count in change.sequences_per_epoch.items():
                    if inside[name]:  # a new edition begins a new epoch
                        epoch[name], inside[name] = epoch[name] + 1, 0
                    per_epoch[name] = count
                mixture = None
        ended = [
            bool(most) and epoch[name] >= most for name, most in zip(NAMES, max_epochs, strict=True)
        ]
        if mixture is None or ended != was_ended:
            active = [
                0.0 if over else weights[name] for name, over in zip(NAMES, ended, strict=True)
            ]
            if not any(active):
                return turns
            mixture, start, was_ended = Mixture(NAMES, active), position, ended
        owner = mixture.turn(position - start)[0]
        name = NAMES[owner]
        turns.append((owner, epoch[name], inside[name]))
        inside[name] += 1
        if inside[name] == per_epoch[name]:
            epoch[name], inside[name] = epoch[name] + 1, 0
    return turns


def plain(schedule, positions):
    turns = [schedule.turn(position) for position in range(positions)]
    return [(turn.set_index, turn.epoch, turn.inside) for turn in turns]


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_a_simulation(seed):
    draws = prf.Draws(prf.derive_key("schedule", seed))
    first = {name: float(draws.integer(0, 4)) for name in NAMES} | {"b": 1.5}
    changes = [Change(0, first, {name: draws.integer(3, 60) for name in NAMES})]
    for _ in range(draws.integer(0, 4)):
        at = changes[-1].position + draws.integer(1, 200)
        weights = {name: draws.uniform(0.1, 3) for name in NAMES if draws.uniform() < 0.5}
        editions = {name: draws.integer(3, 60) for name in NAMES if draws.uniform() < 0.3}
        changes.append(Change(at, weights, editions))
    max_epochs = [draws.integer(0, 7) for _ in NAMES]
    schedule = MixtureSchedule(NAMES, changes, max_epochs)
    expected = simulate(changes, max_epochs, 1500)
    assert schedule.end == (None if len(expected) == 1500 else len(expected))
    assert plain(schedule, len(expected)) == expected
    for position in (0, 1, 77, len(expected)):
        begun = schedule.epochs_before(position)
        for owner in range(len(NAMES)):
            last = [seen for seen in expected[:position] if seen[0] == owner][-1:]
            for _, epoch, _ in last:
                assert epoch < begun[owner] <= epoch + 1


def test_what_is_added_later_changes_nothing_before():
    changes = [Change(0, {"a": 1.0, "b": 2.0, "c": 0.0}, {"a": 7, "b": 11, "c": 5})]
    before = MixtureSchedule(NAMES, changes, [0, 0, 0])
    after = MixtureSchedule(NAMES, [*changes, Change(90, {"c": 4.0}, {"a": 3})], [0, 30, 0])
    assert plain(before, 90) == plain(after, 90) and before.facts(90) == after.facts(90)
    assert before.facts(91) == before.facts(90) != after.facts(91)
    assert {turn[0] for turn in plain(after, 200)[90:]} == {0, 1, 2}
    assert [after.turn(p).current for p in range(200) if after.turn(p).set_index == 0].index(
        True
    ) > 0


def test_a_cap_ends_a_set_exactly_and_the_last_one_ends_the_data():
    schedule = MixtureSchedule(
        NAMES, [Change(0, {"a": 1.0, "b": 1.0, "c": 0.0}, {"a": 10, "b": 9, "c": 2})], [2, 5, 1]
    )
    assert schedule.end == 20 + 45
    turns = plain(schedule, schedule.end)
    for owner, count, epochs in ((0, 10, 2), (1, 9, 5)):
        mine = [turn[1:] for turn in turns if turn[0] == owner]
        assert mine == [(epoch, inside) for epoch in range(epochs) for inside in range(count)]
    assert schedule.epochs_before(schedule.end) == [2.0, 5.0, 0.0]


def test_a_change_that_rounds_to_nothing_is_refused():
    with pytest.raises(UserError, match=r"data\.sets\.b\.weight: 1e-06 is below"):
        MixtureSchedule(
            NAMES,
            [
                Change(0, {"a": 1, "b": 1, "c": 0}, {"a": 1, "b": 1, "c": 1}),
                Change(5, {"b": 1e-6}, {}),
            ],
            [0] * 3,
        )
