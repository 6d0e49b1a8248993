"""How far ahead: by the time of steps, and by what was waited for."""

import math

from mmscale.data.prefetching.depth import Depth


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_seconds_become_steps_by_the_time_of_a_step() -> None:
    clock = Clock()
    depth = Depth(30.0, clock)
    assert math.isnan(depth.step_s) and depth.steps == 4
    for step in range(5):
        depth.progressed(step)
        clock.now += 2.0
    assert depth.step_s == 2.0 and depth.steps == 15
    depth.progressed(4)
    assert depth.step_s == 2.0, "no progress, no time of a step"
    for step in range(5, 60):
        depth.progressed(step)
        clock.now += 120.0
    assert 110 < depth.step_s <= 120 and depth.steps == 1


def test_the_longest_wait_is_covered_three_times_and_forgotten_in_ten_minutes() -> None:
    clock = Clock()
    depth = Depth(30.0, clock)
    depth.waited(2.0)
    assert depth.seconds == 30.0
    depth.waited(25.0)
    clock.now += 100
    depth.waited(15.0)
    assert depth.seconds == 75.0
    clock.now += 550
    assert depth.seconds == 45.0
    clock.now += 100
    assert depth.seconds == 30.0
