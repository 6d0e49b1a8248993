"""Real fetchers over real HTTP: every block once, whoever reads it, and nothing hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from plans import make_plan
from servers import FaultyServer, serve

from mmscale import prf
from mmscale.batch import Batch
from mmscale.config import Config, MediaConfig, SetConfig, TaskConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.data.loading.assembler import Assembler
from mmscale.data.loading.loader import MicroBatches, iterate_steps
from mmscale.data.planning.step_plan import Plan
from mmscale.data.prefetching import prefetcher
from mmscale.data.prefetching.prefetcher import Prefetcher, fetch_ahead
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

SAMPLES, SHARDS, BLOCK = 256, 8, 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of long texts, each of other letters; their index beside them."""
    folder = tmp_path_factory.mktemp("long")
    with ShardWriter(folder, samples_per_shard=SAMPLES // SHARDS) as writer:
        for number in range(SAMPLES):
            drawn = prf.uniform(prf.derive_key("letters", number), 6000 + 40 * (number % 7)) * 26
            text = "".join(chr(97 + int(letter)) for letter in drawn)
            writer.write(f"{number:04d}", {"txt": text.encode()})
    build_index(folder, MediaConfig(), progress=False)
    return folder


@pytest.fixture
def server(shards: Path) -> Iterator[FaultyServer]:
    with serve(shards) as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["abcdefghijklmnopqrstuvwxyz"] * 3, 300)


class Machine:
    """One machine of a run, with a cache of its own, and one rank."""

    def __init__(
        self, url: str, tokenizer: Tokenizer, cache: Path, *, node: int = 0, nodes: int = 1,
        max_gb: float = 0.1, **data: Any,
    ) -> None:  # fmt: skip
        config = Config()
        config.data.sets = {"long": SetConfig(shards=[url], tasks=[TaskConfig(target="text")])}
        config.data.seq_len, config.data.sequences, config.data.block = 16384, 4, BLOCK
        config.data.group_blocks, config.data.window_groups, config.data.lanes = 2, 1, 4
        config.data.cache.dir, config.data.cache.max_gb = str(cache), max_gb
        config.data.cache.retries = 0
        for name, value in data.items():
            setattr(config.data, name, value)
        self.config, self.tokenizer, self.cache = config, tokenizer, cache
        self.node, self.nodes = range(node, node + 1), nodes
        self.plan: Plan = make_plan(config, tokenizer)

    @property
    def steps_in_epoch(self) -> int:
        whole, rest = divmod(self.plan.sets[0].order.sequences_per_epoch, self.plan.sequences)
        assert not rest, "an epoch is whole steps here"
        return whole

    def fetcher(self, steps: range) -> Prefetcher:
        return fetch_ahead(
            self.plan, self.config.data.cache, node=self.node, world=self.nodes, local_rank=0,
            ranks=1, steps=steps, run=f"test-{self.node.start}",
        )  # fmt: skip

    def read(self, prefetcher: Prefetcher, steps: range, workers: int = 0) -> list[Batch]:
        """The batches of the steps, in their order."""
        data = MicroBatches(
            self.plan, Assembler(self.config, self.plan, self.tokenizer), steps=steps.stop,
            micro_batch=4, rank=self.node.start, world=self.nodes, node=self.node,
        )  # fmt: skip
        out = []
        loaded = iterate_steps(data, steps.start, workers=workers, prefetch=2, pin_memory=False)
        for number, step in zip(steps, loaded, strict=True):
            prefetcher.consumed(number)
            out += step.batches
        return out

    def run(self, steps: range, workers: int = 0) -> list[Batch]:
        with closing(self.fetcher(steps)) as prefetcher:
            return self.read(prefetcher, steps, workers)


def keys(batches: list[Batch]) -> list[list[list[str]]]:
    return [batch.keys for batch in batches]


def samples_of(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for row in batch.keys for key in row]


def tars(server: FaultyServer) -> list[tuple[str, str]]:
    return [request for request in server.requests if request[0].endswith(".tar")]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_fetches_every_block_once(server, shards, tokenizer, tmp_path, workers):
    machine = Machine(server.url, tokenizer, tmp_path / "cache")
    steps = range(machine.steps_in_epoch)
    server.requests.clear()  # of the texts, whose tokens were counted
    for path in (tmp_path / "cache" / "blocks").glob("??/*"):
        path.unlink()
    batches = machine.run(steps, workers)
    assert sorted(samples_of(batches)) == [f"{number:04d}" for number in range(SAMPLES)]
    assert not any(batch.faults for batch in batches)
    asked = tars(server)
    assert len(asked) == len(set(asked)) == SAMPLES // BLOCK
    local = Machine(str(shards), tokenizer, tmp_path / "none")
    assert keys(local.run(steps)) == keys(batches), "the order is that of a local disk"
    assert not list((tmp_path / "cache" / "runs").iterdir()), "nothing stays behind"
    assert not (tmp_path / "none" / "runs").exists()


def test_with_a_small_disk_an_epoch_fetches_every_block_once_and_the_next_most_of_them(
    server, tokenizer, tmp_path
):
    machine = Machine(server.url, tokenizer, tmp_path / "cache", max_gb=0.0018)
    epoch = machine.steps_in_epoch
    server.requests.clear()
    with closing(machine.fetcher(range(2 * epoch))) as prefetcher:
        first = machine.read(prefetcher, range(epoch))
        asked = tars(server)
        # Some were there since their tokens were counted, and the fetcher may be ahead by a few.
        assert len(asked) <= SAMPLES // BLOCK + 32
        second = machine.read(prefetcher, range(epoch, 2 * epoch))
    assert len(tars(server)) <= 2 * SAMPLES // BLOCK
    assert max(map(tars(server).count, set(asked))) <= 2
    assert keys(first) != keys(second)


def test_machines_together_fetch_every_block_once(server, tokenizer, tmp_path):
    machines = [
        Machine(server.url, tokenizer, tmp_path / f"cache{node}", node=node, nodes=2)
        for node in range(2)
    ]
    steps = range(machines[0].steps_in_epoch)
    for machine in machines:
        for path in (machine.cache / "blocks").glob("??/*"):
            path.unlink()
    server.requests.clear()
    seen = [samples_of(machine.run(steps)) for machine in machines]
    assert sorted(seen[0] + seen[1]) == [f"{number:04d}" for number in range(SAMPLES)]
    asked = tars(server)
    # Neighbouring lanes share a group where the epoch's row was cut inside of it.
    assert SAMPLES // BLOCK <= len(asked) <= SAMPLES // BLOCK + 2 * 2


def test_a_fetcher_that_is_killed_costs_speed_alone(server, tokenizer, tmp_path, capsys):
    machine = Machine(server.url, tokenizer, tmp_path / "cache", max_gb=0.0018)
    steps = range(machine.steps_in_epoch)
    with closing(machine.fetcher(steps)) as ahead:
        assert ahead._process is not None
        os.kill(ahead._process.pid, signal.SIGKILL)
        ahead._process.join()
        batches = machine.read(ahead, steps)
    assert len(samples_of(batches)) == SAMPLES
    assert not any(batch.faults for batch in batches)
    assert capsys.readouterr().err.count("the process that fetches ahead has ended") == 1


def test_a_shard_that_is_gone_is_a_fault_of_its_samples(server, tokenizer, tmp_path):
    machine = Machine(server.url, tokenizer, tmp_path / "cache")
    gone = machine.plan.sets[0].dataset.manifests[0].shards[3]
    for path in (tmp_path / "cache" / "blocks").glob("??/*"):
        path.unlink()
    server.always[gone] = ("status", 404)
    batches = machine.run(range(machine.steps_in_epoch))
    faults = [fault for batch in batches for fault in batch.faults]
    assert len(faults) == SAMPLES // SHARDS and {fault["shard"] for fault in faults} == {gone}
    assert {"404" in fault["reason"] for fault in faults} == {True}


def test_a_server_without_ranges_gives_whole_shards_once(server, tokenizer, tmp_path, capfd):
    server.ranges = False
    machine = Machine(server.url, tokenizer, tmp_path / "cache")
    batches = machine.run(range(machine.steps_in_epoch))
    assert not any(batch.faults for batch in batches)
    whole = [name for name, wanted in tars(server) if not wanted or server.sent[name]]
    assert max(map(whole.count, set(whole))) <= 2, "the first was asked for a range"


def test_what_the_first_step_reads_comes_first(server, tokenizer, tmp_path, monkeypatch):
    machine = Machine(server.url, tokenizer, tmp_path / "cache")
    for path in (tmp_path / "cache" / "blocks").glob("??/*"):
        path.unlink()
    server.requests.clear()
    extents = machine.plan.sets[0].dataset.extents
    first = {
        extent.offset
        for sequence in machine.plan.step(0).sequences
        for number in set((sequence.samples // BLOCK).tolist())
        for extent in extents.of_block(number)
    }
    batches = machine.run(range(1))
    assert len(batches) == 1
    offsets = {int(wanted.removeprefix("bytes=").partition("-")[0]) for _, wanted in tars(server)}
    assert offsets <= first, "one step reads no more"


def test_a_disk_that_is_too_small_for_what_is_open_is_an_error_that_says_the_least(
    server, tokenizer, tmp_path
):
    machine = Machine(server.url, tokenizer, tmp_path / "cache", max_gb=0.0018)
    machine.config.data.cache.max_gb = 0.0003
    with pytest.raises(UserError, match=r"max_gb: 0\.0003 is less .* raise it to") as raised:
        machine.fetcher(range(3))
    least = float(str(raised.value).partition("raise it to ")[2].partition(",")[0])
    machine.config.data.cache.max_gb = least
    machine.fetcher(range(3)).close()


def test_figures_are_of_this_machine(server, tokenizer, tmp_path):
    machine = Machine(server.url, tokenizer, tmp_path / "cache")
    for path in (tmp_path / "cache" / "blocks").glob("??/*"):
        path.unlink()
    with closing(machine.fetcher(range(4))) as ahead:
        machine.read(ahead, range(3))
        while not ahead.figures().get("bytes"):
            assert ahead._process is not None and ahead._process.is_alive()
        figures = ahead.figures()
    assert figures["requests"] > 0 and figures["source_mb_s"] > 0 and figures["disk_mb_s"] > 0
    assert ahead.figures() == {}, "its folder is gone"
    assert prefetcher.Prefetcher(None, 0).figures() == {}
