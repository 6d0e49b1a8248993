"""Which readers share a machine, as the launcher places the ranks."""

from types import SimpleNamespace
from typing import Any

import pytest

from mmscale.parallel import machine
from mmscale.parallel.machine import find_machine


def find(monkeypatch: pytest.MonkeyPatch, stands: list[tuple[int, int]], rank: int, parts: int = 1):
    """The machine of ``rank``, where ``stands`` is every rank's (local rank, ranks there)."""
    everyone = [(at - local, count, f"name{at}") for at, (local, count) in enumerate(stands)]

    def gather(out: list[Any], mine: Any, group: Any) -> None:
        assert mine[:2] == everyone[rank][:2]
        out[:] = everyone

    monkeypatch.setattr(machine.dist, "all_gather_object", gather)
    local, count = stands[rank]
    ranks: Any = SimpleNamespace(
        rank=rank, world=len(stands), local_rank=local, local_world=count, parts=parts,
        data_world=len(stands) // parts, slow_group=None,
    )  # fmt: skip
    return find_machine(ranks)


def test_neighbouring_ranks_of_a_machine_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    stands = [(0, 4), (1, 4), (2, 4), (3, 4), (0, 2), (1, 2)]
    readers = [find(monkeypatch, stands, rank).readers for rank in range(6)]
    assert readers == [range(4)] * 4 + [range(4, 6)] * 2
    here = find(monkeypatch, stands, 5)
    assert (here.local_rank, here.ranks, here.start) == (1, 2, "name0-4")
    in_pairs = [find(monkeypatch, stands, rank, parts=2).readers for rank in range(6)]
    assert in_pairs == [range(2)] * 4 + [range(2, 3)] * 2


@pytest.mark.parametrize(
    ("stands", "parts"),
    [
        ([(0, 2), (0, 2), (1, 2), (1, 2)], 1),  # dealt in turn over machines
        ([(0, 3), (1, 3), (2, 3), (0, 3), (1, 3), (2, 3)], 2),  # a reader on two machines
        ([(0, 1), (0, 2)], 1),  # a machine that lacks a rank
    ],
)
def test_all_ranks_deal_alike_where_machines_cannot(
    monkeypatch: pytest.MonkeyPatch, stands: list[tuple[int, int]], parts: int
) -> None:
    whole = range(len(stands) // parts)
    assert {find(monkeypatch, stands, rank, parts).readers for rank in range(len(stands))} == {
        whole
    }


def test_a_process_alone_is_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = find(monkeypatch, [(0, 1)], 0)
    assert here.readers == range(1) and here.start.endswith("-0") and len(here.start) > 8
