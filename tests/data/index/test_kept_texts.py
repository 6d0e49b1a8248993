"""Texts beside the index: those of the shards, and a start on remote shards reads nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from plans import make_plan
from servers import serve

from mmscale import prf
from mmscale.config import CacheConfig, Config, MediaConfig, SetConfig, TaskConfig
from mmscale.data.index import kept_texts
from mmscale.data.index.build_index import build_index
from mmscale.data.index.dataset import Dataset
from mmscale.data.index.kept_texts import may_be_kept
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.data.planning import token_counts
from mmscale.data.planning.token_counts import iterate_texts, sample_texts
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

FIELDS = ("text", "cls", "json.a.b", "text.more")


def write(folder: Path, payload: int, samples: int = 90) -> None:
    """Samples of which some lack each text; every seventh ``json`` has no such path."""
    with ShardWriter(folder, samples_per_shard=25) as writer:
        for number in range(samples):
            fields = {"bin": prf.bits(number, np.arange(payload // 8, dtype=np.uint64)).tobytes()}
            if number % 5:
                ending = "text" if number % 3 == 0 else "txt"
                fields[ending] = f" text {number} 数 ".encode()
            if number % 4:
                fields["cls"] = str(number % 3).encode()
            if number % 6 == 0:
                fields["more.txt"] = b""
            value = {"a": {"b": f"w{number}"} if number % 7 else {}}
            fields["json"] = json.dumps(value).encode()
            writer.write(f"k{number:03d}", fields)
    build_index(folder, MediaConfig(), progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    write(root, payload=20_000)
    return root


def test_what_is_kept_is_what_the_shards_hold(folder: Path) -> None:
    tree = json.loads((folder / "index" / "manifest.json").read_text())
    assert sorted(tree["texts"]) == ["cls", "json", "more.txt", "text", "txt"]
    dataset, samples = Dataset.open([str(folder)]), np.arange(90)
    names = sorted(path.name for path in folder.glob("*.tar"))
    some = Dataset.open([str(folder / names[0]), str(folder / names[2])])
    for field in FIELDS:
        plain = []
        for sample in range(90):
            has = dataset.facts(field, np.array([sample]))["offset"][0] > 0
            plain.append(dataset.text(field, sample) if has else None)
        assert dataset._kept(0, field) is not None
        assert list(dataset.texts(field, samples)) == plain
        assert list(dataset.texts(field, samples[33:61])) == plain[33:61]
        assert list(some.texts(field, np.arange(50))) == plain[:25] + plain[50:75]
    assert any(text is None for text in plain) and "" in plain


def test_chunks_of_rows_meet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(iterate_texts(Dataset.open([str(folder)]), "json.a.b"))
    monkeypatch.setattr(kept_texts, "_CHUNK", 7)
    dataset = Dataset.open([str(folder)])
    assert list(iterate_texts(dataset, "json.a.b")) == expected
    assert list(dataset.texts("json.a.b", np.arange(20, 22))) == ["w20", None]


def test_many_texts_are_not_kept(tmp_path: Path) -> None:
    write(tmp_path, payload=8, samples=4000)
    assert "texts" not in json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert not list((tmp_path / "index").glob("texts.*"))
    assert list(Dataset.open([str(tmp_path)]).texts("cls", np.arange(3))) == [None, "1", "2"]


def test_the_share_is_known_at_the_end_alone() -> None:
    assert may_be_kept(60_000, 0, final=True) and not may_be_kept(70_000, 10**6, final=True)
    assert may_be_kept(70_000, 10**6, final=False) and may_be_kept(5_000, 10**6, final=True)
    assert not may_be_kept(10**9, 10**9, final=False)


def test_a_damaged_text_is_an_error_that_names_the_file(folder: Path, tmp_path: Path) -> None:
    write(tmp_path, payload=20_000)
    path = tmp_path / "index" / "texts.json.npy"
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"texts\.json\.npy: the index is damaged"):
        list(iterate_texts(Dataset.open([str(tmp_path)]), "json.a.b"))


def test_a_start_on_remote_shards_reads_no_shard_for_texts(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["text 123 w"] * 3, 300)
    with serve(folder) as server:
        config = Config()
        task = TaskConfig(input=["json.a.b"], target="text")
        config.data.sets = {"a": SetConfig(shards=[server.url], tasks=[task])}
        config.data.cache = CacheConfig(dir=str(tmp_path))
        config.data.seq_len, config.data.sequences = 64, 2
        plan = make_plan(config, tokenizer)
        assert not [name for name, _ in server.requests if name.endswith(".tar")]
        config.data.sets["a"].shards = [str(folder)]
        local = make_plan(config, tokenizer)
        assert [s.samples.tolist() for s in plan.step(3).sequences] == [
            s.samples.tolist() for s in local.step(3).sequences
        ]


def test_counts_made_with_the_index_go_with_it(tmp_path: Path, capsys) -> None:
    write(tmp_path / "shards", payload=8, samples=4000)
    texts = iterate_texts(Dataset.open([str(tmp_path / "shards")]), "text")
    tokenizer = Tokenizer.train([text for text, _ in zip(texts, range(99), strict=False)], 300)
    tokenizer.save(tmp_path / "tokenizer.json")
    with serve(tmp_path / "shards") as server:
        config = Config()
        task = TaskConfig(input=["json.a.b"], target="text")
        config.data.sets = {"a": SetConfig(shards=[server.url], tasks=[task])}
        config.data.cache = CacheConfig(dir=str(tmp_path / "cache"))
        config.data.seq_len, config.data.sequences = 64, 2
        make_plan(config, tokenizer)
        said = capsys.readouterr().err
        assert "all texts of json.a.b are read to count their tokens" in said
        assert "--tokenizer FILE --count json.a.b" in said
        assert [name for name, _ in server.requests if name.endswith(".tar")]

        command = ["data", "index", str(tmp_path / "shards"), "--tokenizer"]
        command += [str(tmp_path / "tokenizer.json"), "--count", "text", "json.a.b"]
        subprocess.run([sys.executable, "-m", "mmscale", *command], check=True, capture_output=True)
        server.requests.clear()
        config.data.cache.dir = str(tmp_path / "other")
        plan = make_plan(config, tokenizer)
        assert not [name for name, _ in server.requests if name.endswith(".tar")]
        assert "are read to count" not in capsys.readouterr().err
        assert plan.sets[0].counts.samples > 2000


def test_a_sample_of_many_texts_is_drawn_from_all_over_the_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_counts, "_RUN", 8)
    dataset = Dataset.open([str(folder)])
    every = list(iterate_texts(dataset, "text"))
    assert list(sample_texts(dataset, "text", 10**6, key=1)) == every
    some = list(sample_texts(dataset, "text", 150, key=1))
    assert set(some) <= set(every) and sum(len(text.encode()) for text in some) >= 150
    assert some == list(sample_texts(dataset, "text", 150, key=1)) and len(some) < len(every) / 2
    places = [every.index(text) for text in some]
    assert places != sorted(places) and places[0] > 0, "not the first of the set"
