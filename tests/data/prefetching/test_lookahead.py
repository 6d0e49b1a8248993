"""What is fetched and dropped, against plain rules and drawn runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmscale.data.prefetching.lookahead import Lookahead, SampleBlock

SIZE = 10


def draw(lane: int, window: int, left: int, *blocks: int, epoch: int = 0, of: int = 0) -> Any:
    """A sequence that reads the first sample of each block; a block has four samples."""
    samples = 4 * np.array(blocks)
    return SimpleNamespace(
        set_index=of, lane=lane, epoch=epoch, window=window, left=left, samples=samples
    )


class Disk:
    """A machine that does all it is told at once, within ``room`` bytes."""

    def __init__(self, steps: list[list[Any]], room: int, start: int = 0, there: Any = ()) -> None:
        self.steps, self.room = steps, room
        self.there = dict.fromkeys(there)
        self.fetched: list[SampleBlock] = []
        self.look = Lookahead(
            lambda step: self.steps[step], [4, 0], size=lambda _: SIZE,
            is_there=self.there.__contains__, start=start, released=list(there),
        )  # fmt: skip

    def fetch(self) -> None:
        while (block := self.look.next()) is not None:
            excess = self.look.held_bytes + self.look.released_bytes + SIZE - self.room
            for dropped in self.look.give_up(excess):
                del self.there[dropped]
            assert self.look.take() == block
            self.there[block] = None
            self.fetched.append(block)

    def step(self, step: int) -> None:
        """Look at it, fetch, read, be done with it."""
        self.look.look(step + 1)
        self.fetch()
        for sequence in self.steps[step]:
            for number in (sequence.samples // 4).tolist():
                assert SampleBlock(0, number) in self.there, f"step {step} lacks block {number}"
        self.look.consumed(step)
        assert self.look.held_bytes + self.look.released_bytes == SIZE * len(self.there)


def numbers(blocks: list[SampleBlock]) -> list[int]:
    return [block.number for block in blocks]


def test_blocks_come_in_the_order_of_their_first_use_and_once() -> None:
    steps = [[draw(0, 0, 1, 5, 2), draw(1, 0, 1, 9)], [draw(0, 0, 0, 2, 7), draw(1, 0, 0, 9, 1)]]
    disk = Disk(steps, room=1000)
    disk.look.look(2)
    assert (
        disk.look.first_use(SampleBlock(0, 7)) == 1 and disk.look.first_use(SampleBlock(0, 5)) == 0
    )
    assert disk.look.needed_bytes == 5 * SIZE and disk.look.held_bytes == 0
    disk.fetch()
    assert numbers(disk.fetched) == [2, 5, 9, 7, 1]
    assert disk.look.held_bytes == 5 * SIZE


def test_a_block_is_held_until_its_window_is_done_and_everybody_has_read_it() -> None:
    steps = [[draw(0, 0, 1, 5)], [draw(0, 0, 0, 6)], [draw(0, 1, 3, 8)], [draw(0, 1, 2, 8)]]
    disk = Disk(steps, room=1000)
    disk.look.look(3)
    disk.fetch()
    assert disk.look.consumed(0) == []
    assert disk.look.consumed(1) == [SampleBlock(0, 5), SampleBlock(0, 6)]
    assert disk.look.give_up(5) == [SampleBlock(0, 6)], "the one that was released last goes first"
    assert disk.look.released_bytes == SIZE


def test_two_lanes_of_a_window_hold_a_block_together() -> None:
    steps = [[draw(0, 0, 0, 5), draw(1, 0, 1, 5)], [draw(0, 1, 9, 7), draw(1, 0, 0, 5)]]
    disk = Disk(steps, room=1000)
    disk.step(0)
    assert disk.look.held_bytes == SIZE
    disk.step(1)
    assert disk.look.give_up(1) == [SampleBlock(0, 5)] and numbers(disk.fetched) == [5, 7]


def test_a_window_whose_last_another_machine_draws_ends_when_the_next_begins() -> None:
    steps = [[draw(0, 0, 1, 5)], [draw(0, 1, 1, 6)], [draw(0, 2, 1, 7)]]
    disk = Disk(steps, room=2 * SIZE)
    for step in range(3):
        disk.step(step)
    assert list(disk.there) == [SampleBlock(0, 6), SampleBlock(0, 7)]


def test_what_is_there_at_the_start_is_used_and_what_vanished_is_fetched() -> None:
    steps = [[draw(0, 0, 1, 5, 6)], [draw(0, 0, 0, 5)]]
    disk = Disk(steps, room=1000, there=[SampleBlock(0, 6), SampleBlock(0, 9)])
    assert disk.look.released_bytes == 2 * SIZE
    del disk.there[SampleBlock(0, 9)]
    disk.look.look(1)
    assert disk.look.next() == SampleBlock(0, 5) and disk.look.held_bytes == SIZE


def test_local_sets_are_left_alone() -> None:
    disk = Disk([[draw(0, 0, 0, 3, of=1)]], room=1000)
    disk.look.look(1)
    assert disk.look.next() is None and disk.look.looked == 1


def test_what_is_given_up_while_it_is_held_is_fetched_again_at_its_next_use() -> None:
    steps = [[draw(0, 0, 2, 5)], [draw(0, 0, 1, 6)], [draw(0, 0, 0, 5)]]
    disk = Disk(steps, room=1000)
    disk.look.look(2)
    disk.fetch()
    disk.look.consumed(0)
    assert disk.look.surrender(1, 0) == [SampleBlock(0, 5)] and disk.look.surrender(1, 0) == []
    del disk.there[SampleBlock(0, 5)]
    assert disk.look.held_bytes == disk.look.needed_bytes == SIZE
    disk.look.look(3)
    disk.fetch()
    assert numbers(disk.fetched) == [5, 6, 5]
    assert disk.look.consumed(2) == [SampleBlock(0, 5), SampleBlock(0, 6)]
    assert disk.look.held_bytes == disk.look.needed_bytes == 0


@st.composite
def runs(drawn: Any) -> tuple[list[list[Any]], int]:
    """(steps of two lanes over several epochs, most blocks that are open at a time)."""
    per_window, windows = drawn(st.integers(1, 4)), drawn(st.integers(1, 5))
    lanes: list[list[Any]] = []
    for lane in range(2):
        sequences = []
        for epoch in range(3):
            for window in drawn(st.permutations(range(windows))):
                first = (lane * windows + window) * per_window
                count = drawn(st.integers(1, 4))
                for left in reversed(range(count)):
                    blocks = drawn(st.sets(st.integers(first, first + per_window - 1), min_size=1))
                    sequences.append(draw(lane, window, left, *sorted(blocks), epoch=epoch))
        lanes.append(sequences)
    length = min(map(len, lanes))
    return [[lane[step] for lane in lanes] for step in range(length)], 2 * per_window


@given(run=runs(), spare=st.integers(0, 8), start=st.integers(0, 6))
def test_a_run_has_what_it_reads_within_its_bound_and_fetches_nothing_twice_while_it_is_open(
    run: tuple[list[list[Any]], int], spare: int, start: int
) -> None:
    steps, opened = run
    start = min(start, len(steps) - 1)
    disk = Disk(steps, room=(opened + spare) * SIZE, start=start)
    open_windows: set[Any] = set()
    for step in range(start, len(steps)):
        before = len(disk.fetched)
        kept = {key: set(disk.there) for key in open_windows}
        disk.step(step)
        assert len(disk.there) <= opened + spare, "the bound"
        for block in disk.fetched[before:]:
            assert not any(block in there for there in kept.values()), "it was there"
        for sequence in steps[step]:
            key = sequence.lane, sequence.epoch, sequence.window
            (open_windows.discard if sequence.left == 0 else open_windows.add)(key)
    if spare >= 2 * 5 * 4:
        assert len(disk.fetched) == len(set(disk.fetched))


@pytest.mark.parametrize(("room", "fetched"), [(4, 22), (10, 10)])
def test_a_stable_part_of_the_set_outlives_an_epoch(room: int, fetched: int) -> None:
    """Ten blocks, one at a time, in two epochs of another order: with room for four, three are
    kept.
    """
    orders = [range(10), [3, 7, 1, 0, 9, 2, 5, 8, 4, 6], [6, 0, 8, 2, 4, 1, 9, 3, 7, 5]]
    steps = [
        [draw(0, number, 0, block, epoch=epoch)]
        for epoch, order in enumerate(orders)
        for number, block in enumerate(order)
    ]
    disk = Disk(steps, room=room * SIZE)
    for step in range(len(steps)):
        disk.step(step)
    assert len(disk.fetched) <= fetched + 2
