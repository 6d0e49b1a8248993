"""What a set's index says of its storage is what reading the set takes; nothing is read for it."""

from pathlib import Path

import pytest
from indexed import edit_json, picture, sound, write_shards
from plans import make_plan

from mmscale.capacity import stored_set
from mmscale.capacity.stored_set import BYTES_PER_TOKEN, look_at
from mmscale.config import Config, SetConfig, TaskConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.index.dataset import Dataset
from mmscale.data.index.manifest import Manifest
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

URL = "https://shards.invalid/set"
TEXTS = ["a picture of one", "two", "three, with rather more words than the others have"]


@pytest.fixture
def config(tmp_path) -> Config:
    config = Config()
    config.data.cache.dir = str(tmp_path / "cache")
    config.data.seq_len, config.data.block = 256, 4
    tasks = [TaskConfig(input=["image"], prompt="what is it", target="text")]
    config.data.sets = {"own": SetConfig(shards=[str(tmp_path / "set")], tasks=tasks)}
    samples = {
        f"{number:03d}": {
            "png": picture(16 + number % 7, 16 + number % 5),
            "txt": TEXTS[number % 3].encode(),
            "wav": sound(50, 8000),
        }
        for number in range(90)
    }
    write_shards(tmp_path / "set", samples, per_shard=30)
    build_index(tmp_path / "set", config.media, progress=False)
    return config


def looked_at(config: Config, tokenizer: Tokenizer | None = None) -> stored_set.StoredSet:
    return look_at(config.data.sets["own"], config, tokenizer)


def folder(config: Config) -> Path:
    return Path(config.data.sets["own"].shards[0])


def wanted_bytes(config: Config) -> int:
    manifest = Manifest.load(folder(config))
    return sum(int(manifest.column(field)["size"].sum()) for field in ("png", "txt"))


def test_local_shards_take_the_bytes_of_the_fields_that_are_read(config):
    stored = looked_at(config)
    assert stored.bytes == wanted_bytes(config) and stored.blocks == 23
    assert (stored.remote_bytes, stored.requests) == (0, 0)


def test_remote_shards_take_what_is_fetched_of_them(config):
    edit_json(folder(config), base=URL)
    dataset = Dataset([Manifest.load(folder(config))], config.data.cache, block=4,
                      fields=["image", "text"])  # fmt: skip
    assert dataset.extents is not None
    fetched = [extent for block in range(23) for extent in dataset.extents.of_block(block)]
    stored = looked_at(config)
    assert stored.requests == len(fetched) >= 23
    assert stored.bytes == stored.remote_bytes == sum(extent.length for extent in fetched)
    assert stored.bytes > wanted_bytes(config), "what lies between the fields comes with them"


def test_a_server_without_ranges_sends_each_shard_once_an_epoch(config):
    edit_json(folder(config), base=URL)
    dataset = Dataset([Manifest.load(folder(config))], config.data.cache, block=4)
    assert dataset.extents is not None
    servers = dataset.extents._servers
    Path(config.data.cache.dir).mkdir()
    servers.deny(URL)
    stored = looked_at(config)
    assert stored.requests == 3
    assert stored.bytes == sum(shard.bytes for shard in Manifest.load(folder(config)).entries)


def test_tokens_are_those_of_the_plan_where_texts_were_counted(config):
    tokenizer = Tokenizer.train(TEXTS, 300)
    assert not looked_at(config, tokenizer).counted
    counts = make_plan(config, tokenizer).sets[0].counts
    stored = looked_at(config, tokenizer)
    assert stored.counted and stored.tokens == counts.tokens


def test_tokens_of_texts_that_nobody_counted_follow_from_their_bytes(config):
    short = looked_at(config).tokens
    longer = SetConfig(shards=config.data.sets["own"].shards, tasks=[TaskConfig(target="text")])
    alone = look_at(longer, config, None)
    texts = sum(-(-len(text) // BYTES_PER_TOKEN) for text in TEXTS) * 30
    assert not alone.counted
    assert alone.tokens == texts + 90, "and one that asks for the answer"
    assert short > alone.tokens


def test_of_a_large_set_places_from_all_of_it_are_looked_at(config, monkeypatch):
    edit_json(folder(config), base=URL)
    whole = looked_at(config)
    monkeypatch.setattr(stored_set, "_LOOKED_AT_BLOCKS", 12)
    monkeypatch.setattr(stored_set, "_LOOKED_AT_SAMPLES", 45)
    part = looked_at(config)
    assert part != whole and part == looked_at(config), "the same places every time"
    for name in ("bytes", "remote_bytes", "requests", "tokens"):
        assert getattr(part, name) == pytest.approx(getattr(whole, name), rel=0.1)


def test_a_set_without_an_index_here_says_what_would_make_it_known(config, tmp_path):
    remote = SetConfig(shards=[URL + "/"], tasks=config.data.sets["own"].tasks)
    with pytest.raises(UserError, match=r"shards\.invalid/set is not on this machine; name a copy"):
        look_at(remote, config, None)
    with pytest.raises(UserError, match="neither a folder nor"):
        look_at(SetConfig(shards=[str(tmp_path / "none")], tasks=remote.tasks), config, None)


def test_an_index_that_a_run_has_fetched_is_found_in_the_cache(config, tmp_path):
    edit_json(folder(config), base=URL)
    whole = looked_at(config)
    remote = SetConfig(shards=[URL + "/"], tasks=config.data.sets["own"].tasks)
    kept = tmp_path / "cache" / "indexes" / "any"
    kept.parent.mkdir(parents=True)
    (folder(config)).rename(kept.with_suffix(".part"))
    with pytest.raises(UserError, match="not on this machine"):
        look_at(remote, config, None)
    kept.with_suffix(".part").rename(kept)
    assert look_at(remote, config, None) == whole
