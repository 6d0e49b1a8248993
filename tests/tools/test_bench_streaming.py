"""The parts of `tools/bench_streaming.py` count what they say; their figures are read from
`docs/benchmarks.md`, not tested.
"""

import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))

from bench_streaming_http import Amounts, Trial, table
from bench_streaming_mosaic import _Shards
from bench_streaming_server import Counts, Server
from bench_streaming_simulation import EPOCHS, SEQUENCES, Machine, run
from bench_streaming_throttled import least_waits


def fetch(server: Server, name: str, span: str = "", method: str = "GET") -> bytes:
    headers = {"Range": f"bytes={span}"} if span else {}
    request = urllib.request.Request(
        f"http://{server.address}/{name}", None, headers, method=method
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == (206 if span else 200)
        return answer.read()


def test_the_server_counts_every_byte_and_does_not_forget(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.tar").write_bytes(bytes(range(256)) * 1000)
    (tmp_path / "web" / "b.json").write_bytes(b"{}")
    server = Server(tmp_path / "web", tmp_path / "counts")
    try:
        assert fetch(server, "a.tar", "1000-1255") == bytes(range(1000 % 256, 256)) + bytes(
            range(1000 % 256)
        )
        assert len(fetch(server, "a.tar")) == 256_000 and fetch(server, "b.json") == b"{}"
        assert fetch(server, "a.tar", method="HEAD") == b""
        before = server.counts()
        assert before == Counts(3, 256_256, 1, 2)
        server.kill()
        with pytest.raises(urllib.error.URLError):
            fetch(server, "a.tar")
        server.start()
        assert len(fetch(server, "a.tar", "255990-")) == 10
        assert server.counts().since(before) == Counts(1, 10, 0, 0)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(server, "%2e%2e/counts")
    finally:
        server.close()


class Steps:
    """A plan of one set in blocks of one sample: every step reads the same blocks, in lanes."""

    def __init__(self, lanes: int, steps: int) -> None:
        self.sets = [SimpleNamespace(layout=SimpleNamespace(block=1))]
        width = SEQUENCES // lanes
        self.steps = [
            [
                SimpleNamespace(
                    set_index=0, epoch=0, lane=number // width, window=0, left=1,
                    samples=np.array([number // width]),
                )
                for number in range(SEQUENCES)
            ]
            for _ in range(steps)
        ]  # fmt: skip

    def node_share(self, step: int, node: range, world: int) -> list:
        per_rank = SEQUENCES // world
        return self.steps[step][node.start * per_rank : node.stop * per_rank]


def test_machines_read_their_parts_of_each_step_and_keep_their_disks():
    plan = Steps(lanes=6, steps=3 * EPOCHS)
    machines = run(plan, np.full(6, 10), (2, 3, 2), room=100)
    assert [sorted(machine.fetched) for machine in machines] == [[0, 1, 2], [2, 3, 4, 5], [4, 5]]
    assert [machine.most for machine in machines] == [30, 30, 20]


def test_a_disk_that_is_too_small_forgets_what_was_released_last():
    plan = Steps(lanes=6, steps=1)
    machine = Machine(plan, np.full(6, 10), room=20)
    machine.step(0, range(1), 2)
    assert machine.fetched == [0, 1, 2] and machine.most == 30, "all three are needed"
    machine.restart()
    machine.step(0, range(1), 3)
    assert machine.fetched == [0, 1, 2], "the disk outlives a restart, and what it holds is used"


def test_the_cache_of_shards_that_others_have_forgets_the_least_recently_used():
    shards = _Shards(2)
    assert [shards.use(number) for number in (1, 2, 1, 3, 1, 2)] == [1, 1, 0, 1, 0, 1]


def test_a_step_waits_until_what_it_needs_can_have_come():
    assert least_waits(np.array([10, 0, 30, 10]), rate=10.0, step_s=2.0) == [1.0, 0, 0, 0]
    assert least_waits(np.array([10, 60]), rate=10.0, step_s=2.0) == [1.0, 4.0]


def test_epochs_over_http_are_counted(tmp_path: Path):
    amounts = Amounts(samples=256, shards=16, caches=(0.9,), nodes=(1,))
    results = list(Trial(tmp_path, amounts, "", sys.executable).run())
    ours, webdataset = results
    assert (ours.side, ours.problem, webdataset.problem) == ("mmscale", "", "")
    assert 0.5 < ours.times <= 1.05 and ours.requests > 0, "nine tenths outlive an epoch"
    assert webdataset.times == 1.0 and webdataset.requests == 16 * 2
    assert table(results).count("\n") == 3
