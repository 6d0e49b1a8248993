"""``long: split``: every token of a long text is learned once, in its place."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from plans import make_plan

from mmscale import prf
from mmscale.config import Config, MediaConfig, SetConfig, TaskConfig
from mmscale.config.tasks import check_set
from mmscale.data.index.build_index import build_index
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.data.loading.assembler import Assembler
from mmscale.data.special_tokens import ANSWER, END
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

SEQ_LEN = 64
WORDS = ["one", "two", "three", "four", "five", "六", "seven"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    draws = prf.Draws(3)
    lengths = [
        draws.integer(1, 400) if number % 3 else draws.integer(1, 12) for number in range(60)
    ]
    return [
        " ".join(WORDS[draws.integer(0, len(WORDS))] for _ in range(length)) for length in lengths
    ]


@pytest.fixture(scope="module")
def tokenizer(texts) -> Tokenizer:
    return Tokenizer.train(texts, 300)


@pytest.fixture(scope="module")
def shards(texts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    with ShardWriter(folder, samples_per_shard=20) as writer:
        for number, text in enumerate(texts):
            writer.write(f"{number:03d}", {"txt": text.encode()})
        writer.write("none", {"cls": b"no text"})
    build_index(folder, MediaConfig(), progress=False)
    return folder


def config_for(shards: Path, long: str) -> Config:
    config = Config()
    tasks = [TaskConfig(target="text", weight=2.0)]
    config.data.sets = {"long": SetConfig(shards=[str(shards)], tasks=tasks, long=long)}
    config.data.seq_len, config.data.sequences = SEQ_LEN, 4
    return config


def test_every_token_is_learned_once_an_epoch_after_those_before_it(shards, texts, tokenizer):
    config = config_for(shards, "split")
    plan = make_plan(config, tokenizer)
    assembler = Assembler(config, plan, tokenizer)
    counts = plan.sets[0].counts
    whole = {
        f"{number:03d}": np.array([ANSWER, *tokenizer.encode(text), END])
        for number, text in enumerate(texts)
    }
    longer = sum(len(tokens) - 1 > SEQ_LEN for tokens in whole.values())
    assert (counts.samples, counts.cut, counts.oversize) == (len(texts), longer, 0) and longer > 20
    assert counts.tokens == sum(len(tokens) - 1 for tokens in whole.values())

    learned, steps = defaultdict(list), plan.sets[0].order.sequences_per_epoch // plan.sequences
    for step in range(steps + 1):
        planned = plan.step(step)
        batch = assembler.batch(planned, planned.sequences)
        block = batch.objectives["next_token"]
        total = float(block["weight_T"].double().sum())
        assert total == pytest.approx(2.0), "the task's weight, whatever was cut"
        assert batch.tokens_BL.shape[1] == SEQ_LEN and not batch.faults
        taught = dict(zip(block["at_T"].tolist(), block["token_T"].tolist(), strict=True))
        for row, sequence in enumerate(planned.sequences):
            if sequence.epoch:
                continue
            at = row * SEQ_LEN
            pairs = zip(batch.keys[row], sequence.parts.tolist(), strict=True)
            for key, part in pairs:
                tokens = whole[key]
                length = min(len(tokens) - 1 - part * SEQ_LEN, SEQ_LEN)
                seen = batch.tokens_BL.reshape(-1)[at : at + length].tolist()
                assert seen == tokens[part * SEQ_LEN :][:length].tolist()
                assert [taught[at + i] for i in range(length)] == (
                    tokens[part * SEQ_LEN + 1 :][:length].tolist()
                )
                positions = batch.position_BL3.reshape(-1, 3)[at : at + length, 0]
                assert positions.tolist() == list(range(length)), "a segment of its own"
                learned[key].append(part)
                at += length
    assert {key: sorted(parts) for key, parts in learned.items()} == {
        key: list(range(-(-(len(tokens) - 1) // SEQ_LEN))) for key, tokens in whole.items()
    }


def test_refuse_leaves_them_out_and_short_ones_alone(shards, texts, tokenizer):
    counts = make_plan(config_for(shards, "refuse"), tokenizer).sets[0].counts
    short = sum(len(tokenizer.encode(text)) + 1 <= SEQ_LEN for text in texts)
    assert (counts.samples, counts.cut, counts.oversize) == (short, 0, len(texts) - short)


def test_the_two_are_other_orders(shards, tokenizer):
    prints = {
        make_plan(config_for(shards, long), tokenizer).fingerprint(1)
        for long in ("refuse", "split")
    }
    assert len(prints) == 2


def test_packing_of_cut_texts_is_full(shards, tokenizer):
    planned = make_plan(config_for(shards, "split"), tokenizer).sets[0]
    assert planned.counts.tokens / (planned.order.sequences_per_epoch * SEQ_LEN) > 0.97


@pytest.mark.parametrize(
    "tasks",
    [
        [TaskConfig(input=["text"], target="cls")],
        [TaskConfig(target="text", prompt="read")],
        [TaskConfig(target="text"), TaskConfig(target="cls")],
        [TaskConfig(objective="contrastive", between=["text", "cls"])],
    ],
)
def test_what_cannot_be_cut_is_refused_by_its_key(tasks):
    with pytest.raises(UserError, match=r"data\.sets\.a\.long: split is for a set whose one task"):
        check_set("data.sets.a", SetConfig(shards=["x"], tasks=tasks, long="split"))
