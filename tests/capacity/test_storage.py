"""What a run asks of its storage is arithmetic over what its sets hold; a plan says it."""

import json

import pytest
from indexed import edit_json, picture, write_shards
from test_dry_plan import planner, small_config

from mmscale import cli
from mmscale.capacity.report import describe, facts_of
from mmscale.capacity.search import Planner
from mmscale.capacity.storage import (
    Storage,
    StorageNeeds,
    StorageTerms,
    times_fetched,
    window_bytes,
)
from mmscale.capacity.stored_set import StoredSet
from mmscale.config import Config, SetConfig, TaskConfig
from mmscale.config_file import dump_config
from mmscale.data.index.build_index import build_index
from mmscale.errors import UserError

TASKS = [TaskConfig(target="text")]
STEP_S = 2.0


def stored(**changes) -> StoredSet:
    """1,000 samples of 1 MB that fill 500 sequences, on a server."""
    facts = {
        "samples": 1000, "block": 10, "bytes": 1e9, "remote_bytes": 1e9, "requests": 100.0,
        "tokens": 500 * 0.99 * 512, "counted": True,
    }  # fmt: skip
    return StoredSet(**facts | changes)


def config_of(**weights: float) -> Config:
    config = Config()
    config.data.seq_len, config.data.sequences = 512, 16
    config.data.sets = {
        name: SetConfig(shards=["/none"], tasks=TASKS, weight=weight)
        for name, weight in weights.items()
    }
    config.data.cache.max_gb = 0.5
    return config


def needs(config: Config, known: dict[str, StoredSet], **changes) -> StorageNeeds:
    terms = changes.pop("terms", StorageTerms())
    storage = Storage(config=config, terms=terms, known=known, unknown={})
    how = {"world": 16, "per_node": 4, "parts": 1, "steps": 1000.0, "step_s": STEP_S}
    return storage.needs(**how | changes)


def test_a_step_reads_its_share_of_every_set():
    config = config_of(some=3, rest=1)
    found = needs(config, {"some": stored(), "rest": stored(bytes=2e9, remote_bytes=2e9)})
    # 12 sequences of 500 and 4 of 500, on four machines.
    assert found.sets["some"].bytes_per_step == pytest.approx(12 / 500 * 1e9)
    assert found.sets["rest"].bytes_per_step == pytest.approx(4 / 500 * 2e9)
    assert found.nodes == 4
    assert found.node_bytes_per_step == pytest.approx((12 + 8) / 500 * 1e9 / 4)
    assert found.node_bytes_per_s == found.node_bytes_per_step / STEP_S


def test_ranks_that_share_their_data_read_it_on_each_of_their_machines():
    config, known = config_of(some=1), {"some": stored()}
    alone = needs(config, known).node_bytes_per_step
    assert needs(config, known, parts=4).node_bytes_per_step == alone, "within one machine"
    assert needs(config, known, parts=8).node_bytes_per_step == 2 * alone
    assert needs(config, known, world=2).node_bytes_per_step == 4 * alone, "a part of a machine"


def test_a_set_is_fetched_once_an_epoch_unless_it_is_kept():
    config = config_of(some=1)
    found = needs(config, {"some": stored()})
    assert found.sets["some"].epochs == pytest.approx(1000 * 16 / 500)
    assert not found.keeps_all
    assert found.fetched_bytes == pytest.approx(32e9) and found.requests == pytest.approx(3200)
    config.data.cache.max_gb = 2
    kept = needs(config, {"some": stored()})
    assert kept.keeps_all and 3.9e9 < kept.fetched_bytes <= 4e9, "by each of four machines"
    assert needs(config, {"some": stored()}, world=4).fetched_bytes == 1e9
    config.data.sets["some"].max_epochs = 1
    assert needs(config, {"some": stored()}).fetched_bytes == 1e9


def test_local_shards_cost_nothing_and_need_no_cache():
    found = needs(config_of(some=1), {"some": stored(remote_bytes=0.0, requests=0.0)})
    assert found.node_bytes_per_s > 0
    assert (found.fetched_bytes, found.requests, found.window_bytes) == (0, 0, 0)


@pytest.mark.parametrize(
    ("epochs", "nodes", "keeps_all", "times"),
    [(3.5, 8, False, 3.5), (0.3, 1, True, 0.3), (7.0, 1, True, 1.0), (2.0, 2, True, 1.5)],
)
def test_how_often_all_nodes_fetch_a_set(epochs, nodes, keeps_all, times):
    assert times_fetched(epochs, nodes, keeps_all) == pytest.approx(times)


def test_a_window_is_what_its_lanes_have_open():
    assert window_bytes(lanes=3, window_groups=2, group_blocks=8, block_bytes=1e6) == 48e6
    config, small = config_of(some=1), stored(block=1, requests=1000.0)
    wide = needs(config, {"some": small}).window_bytes
    assert 0 < wide <= 1e9
    assert needs(config, {"some": small}, world=4).window_bytes > wide, "one machine has all lanes"


def test_money_is_bytes_and_requests():
    terms = StorageTerms(egress_per_tb=90.0, requests_per_million=5.0)
    found = needs(config_of(some=1), {"some": stored()}, terms=terms)
    assert found.price == pytest.approx(32e9 * 90e-12 + 3200 * 5e-6)


def test_a_step_waits_for_storage_that_is_too_slow():
    config, known = config_of(some=1), {"some": stored()}
    rate = 8 * needs(config, known).node_bytes_per_s / 1e9
    fast = needs(config, known, terms=StorageTerms(gbps=1.2 * rate))
    assert fast.step_s == STEP_S
    slow = needs(config, known, terms=StorageTerms(gbps=0.8 * rate))
    assert slow.step_s == pytest.approx(STEP_S / 0.8)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["gbps", "egress_per_tb", "requests_per_million"])
def test_terms_are_numbers(name, value):
    with pytest.raises(UserError, match=f"--.*{name.replace('_', '-')} .*: a number, 0 or above"):
        StorageTerms(**{name: value}).check()


@pytest.fixture
def planned(tmp_path) -> tuple[Planner, Config]:
    config = small_config()
    samples = {
        f"{number:03d}": {"png": picture(32, 32), "txt": b"some words " * 9} for number in range(64)
    }
    build_index(write_shards(tmp_path / "set", samples, 16), config.media, progress=False)
    edit_json(tmp_path / "set", base="https://shards.invalid/set")
    tasks = [TaskConfig(input=["image"], target="text")]
    config.data.sets["there"] = SetConfig(shards=[str(tmp_path / "set")], tasks=tasks)
    config.data.sets["absent"] = SetConfig(shards=["s3://bucket/absent/"], tasks=tasks)
    config.data.schedule = []
    return planner(config), config


def test_a_plan_says_what_is_known_and_what_would_make_the_rest_known(planned):
    of, config = planned
    storage = Storage.look(config, StorageTerms(gbps=1e-6, egress_per_tb=1e9), None)
    facts = facts_of(of, of.own_way(), of.evaluate(of.own_way()), 1e9, storage)
    said = facts["storage"]
    assert json.loads(json.dumps(said)) == said and list(said["sets"]) == ["there"]
    text = describe(of, facts)
    assert "storage, 2 machines" in text
    assert "absent          unknown: the index of s3://bucket/absent is not on this" in text
    assert "both            unknown: /none: neither a folder nor a .tar file" in text
    assert "there           64 samples of " in text and " an epoch; " in text
    assert "a machine reads at least " in text and "Gbit/s of 1e-06 that there are" in text
    assert "loading is what a step waits for: it takes" in text
    assert "its disk holds  at least " in text and "every remote set is kept" in text
    assert "the run fetches at least " in text and ", price " in text
    assert "4 bytes of text are a token" in text


def test_days_count_the_wait_for_storage(planned):
    of, config = planned
    estimate = of.evaluate(of.own_way())
    free, slow = (
        facts_of(of, of.own_way(), estimate, 1e9, Storage.look(config, StorageTerms(gbps=g), None))
        for g in (0.0, 1e-6)
    )
    waited = slow["storage"]["step_s"] / estimate.step_s
    assert waited > 2 and slow["days"] == pytest.approx(waited * free["days"])
    assert "loading is what" not in describe(of, free) and "price" not in describe(of, free)
    without = facts_of(of, of.own_way(), estimate, 1e9)
    assert without["days"] == free["days"] and "storage" not in without


def test_too_small_a_cache_is_told(planned):
    of, config = planned
    config.data.cache.max_gb = 0.001
    storage = Storage.look(config, StorageTerms(), None)
    assert storage.known["there"].bytes < 1e6
    facts = facts_of(of, of.own_way(), of.evaluate(of.own_way()), 1e9, storage)
    assert "is too small" not in describe(of, facts)
    facts["storage"]["window_bytes"] = 2e6
    assert "data.cache.max_gb is too small for that: raise it" in describe(of, facts)


def test_the_command_takes_the_terms_and_gives_the_needs(planned, tmp_path, capsys):
    _, config = planned
    del config.data.sets["absent"], config.data.sets["both"]
    (tmp_path / "run.yaml").write_text(dump_config(config), encoding="utf-8")
    command = ["plan", str(tmp_path / "run.yaml"), "--gpus", "2", "--no-search", "--json"]
    terms = {"gbps": 25.0, "egress_per_tb": 90.0, "requests_per_million": 0.4}
    cli.main([*command, "--storage-gbps", "25", "--egress-per-tb", "90",
              "--requests-per-million", "0.4"])  # fmt: skip
    facts = json.loads(capsys.readouterr().out)
    assert facts["storage_terms"] == terms and facts["storage"]["price"] > 0
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command, "--storage-gbps", "-1"])
    assert stopped.value.code == 2 and "--storage-gbps -1: a number" in capsys.readouterr().err
