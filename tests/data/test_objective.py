"""An objective that is none of ours, examples/own_objective.py, from its plan to its weights."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import plans
import pytest
import torch
from conftest import ROOT, run_module
from indexed import picture
from packings import MEDIA, model_config, random_batch
from plugged import without_plugins

from mmscale.config import Config, SetConfig, TaskConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.data.loading.assembler import Assembler
from mmscale.data.planning import groups
from mmscale.data.special_tokens import ANSWER
from mmscale.data.tokenizer import Tokenizer
from mmscale.data.worker_pool import WorkerPool
from mmscale.errors import UserError
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.model.width import initial_factor, rule_of, width_ratio
from mmscale.plugins import import_plugins
from mmscale.registry import LOSSES, OBJECTIVES, OPTIMIZERS

EXAMPLES = ROOT / "examples"
NUMBERS = [0.5, -2, "many", 3, None, 1e3, 7, 8.25, 9, 10]  # None: the field is missing
TASK = TaskConfig(
    objective="regress", input=["image"], prompt="number", target="json.number", weight=0.5
)


@pytest.fixture
def without_it():
    """A process that can import what lies in examples/, and has not; nor has it afterwards."""
    with without_plugins():
        before = set(sys.modules)
        sys.path.append(str(EXAMPLES))
        yield
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "").parent == EXAMPLES:
                del sys.modules[name]


@pytest.fixture
def regress(without_it):
    """The objective, registered."""
    import_plugins(["own_objective"])


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    with ShardWriter(folder) as writer:
        for number, value in enumerate(NUMBERS):
            facts = {} if value is None else {"number": value}
            fields = {"png": picture(20, 20), "json": json.dumps(facts).encode()}
            writer.write(f"{number}", fields)
    build_index(folder, MEDIA, progress=False)
    return folder


def make_plan(shards: Path):
    config = Config(media=MEDIA, model=model_config(vocab_size=320))
    config.data.sets = {"numbers": SetConfig(shards=[str(shards)], tasks=[TASK])}
    config.data.seq_len, config.data.sequences = 64, 2
    config.check()
    tokenizer = Tokenizer.train(["number"] * 3, 300)
    plan = plans.make_plan(config, tokenizer)
    return plan, Assembler(config, plan, tokenizer), len(tokenizer.encode(TASK.prompt))


def test_it_is_known_for_this_test_alone(regress):
    assert "regress" in OBJECTIVES.names() and "regress" in LOSSES.names()
    with without_plugins():
        assert "regress" not in OBJECTIVES.names() and "regress" not in LOSSES.names()


def test_its_tokens_and_its_count_are_planned(regress, shards):
    plan, _, prompt = make_plan(shards)
    sizes = plan.sets[0].measure.sizes(np.arange(len(NUMBERS)))
    there = np.array([value is not None for value in NUMBERS])
    picture_tokens = 2 * 3
    assert sizes.tokens.tolist() == (there * (picture_tokens + prompt + 1)).tolist()
    assert sizes.counts["regress"].tolist() == there.tolist()
    assert not any(count.any() for name, count in sizes.counts.items() if name != "regress")
    assert not sizes.predictions.any(), "a number needs no logits over the vocabulary"
    samples = np.concatenate([sequence.samples for sequence in plan.step(0).sequences])
    assert plan.step(0).counts["regress"] == len(samples) > 0


def test_its_block_holds_the_numbers(regress, shards):
    plan, assembler, _ = make_plan(shards)
    step = plan.step(0)
    batch = assembler.batch(step, step.sequences)
    block = batch.objectives["regress"]
    assert {name: part.dtype for name, part in block.items()} == {
        "at_T": torch.int64, "value_T": torch.float32, "weight_T": torch.float32,
    }  # fmt: skip
    assert (batch.tokens_BL.flatten()[block["at_T"]] == ANSWER).all()
    numbers = [NUMBERS[int(key)] for keys in batch.keys for key in keys]
    assert "many" in numbers and None not in numbers
    assert block["value_T"].tolist() == [number for number in numbers if number != "many"]
    # Of the whole step, the broken sample included: no rank must ask another.
    weight = torch.full_like(block["weight_T"], 0.5 / step.counts["regress"])
    torch.testing.assert_close(block["weight_T"], weight)
    assert [(fault["key"], fault["reason"]) for fault in batch.faults] == [
        ("2", "'many' is no number")
    ] * numbers.count("many")
    empty = {name: part for name, part in batch.objectives.items() if name != "regress"}
    assert not any(part.numel() for parts in empty.values() for part in parts.values())


def test_its_loss_is_the_squared_error_and_nothing_for_an_empty_block(regress):
    model = FusionTransformer(model_config(), MEDIA)
    initialise(model, model.config, seed=0)
    batch = random_batch(0)
    losses = model(batch)
    assert list(losses)[-1] == "regress" and losses["regress"].item() == 0
    weights = list(model.regress_head.parameters())
    assert not any(grad.any() for grad in torch.autograd.grad(losses["regress"], weights))
    values, shares = torch.tensor([1.0, -3.0]), torch.tensor([0.25, 0.5])
    batch = batch.with_block("regress", at_T=torch.tensor([4, 9]), value_T=values, weight_T=shares)
    head = model.regress_head
    numbers = model.hidden(batch).flatten(0, 1)[[4, 9]] @ head.weight[0] + head.bias
    torch.testing.assert_close(model(batch)["regress"], (shares * (numbers - values) ** 2).sum())
    torch.testing.assert_close(model.outputs("regress", batch), numbers)


def test_its_head_follows_its_width_rule(regress, monkeypatch):
    config = dataclasses.replace(model_config(), base_width=8)
    assert rule_of("regress_head.weight", 2, config) == "output"
    assert rule_of("regress_head.bias", 1, config) == "input"
    assert OPTIMIZERS["adamw"].lr_factor("output", width_ratio(config)) == 8 / config.width
    assert initial_factor("regress_head.weight", 2, config) == (8 / config.width) ** 0.5
    monkeypatch.setattr(type(LOSSES["regress"]), "width_rules", {})
    with pytest.raises(AssertionError, match=r"regress_head\.weight: has no width rule"):
        rule_of("regress_head.weight", 2, config)


def test_workers_that_count_a_large_set_know_it(regress, shards):
    plan, _, _ = make_plan(shards)
    row = groups._BlockRow(len(NUMBERS), 4)
    tasks = [(row, plan.sets[0].measure, plan.seq_len, 1, 0, row.blocks)] * 2
    here = groups._count_section(tasks[0])
    with WorkerPool(2) as pool:
        for _, counts in pool.run(groups._count_section, tasks, 2):
            assert counts.to_array().tolist() == here.to_array().tolist()


def test_it_trains_beside_the_others(tmp_path, small_run):
    ours = next(key for key in small_run if key.startswith("data.sets.digits.tasks="))
    both = ours.removesuffix("]") + ", {objective: regress, input: [image], target: json.digit}]"
    run_module(
        [
            "mmscale", "train", str(ROOT / "configs/train/digits.yaml"), *small_run, both,
            "--plugin", "own_objective", f"run.dir={tmp_path}/run", "train.steps=4",
            "train.micro_batch=4", "train.optimizer={lr: 1e-2, warmup_steps: 0}",
            "parallel.threads=1",
        ],
        cwd=EXAMPLES,
    )  # fmt: skip
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").open()]
    for row in rows:
        assert list(row["losses"]) == ["next_token", "contrastive", "ctc", "classify", "regress"]
        assert all(loss > 0 for loss in row["losses"].values())
        assert row["loss"] == pytest.approx(sum(row["losses"].values()))
    assert len(rows) == 4 and rows[-1]["losses"]["regress"] < rows[0]["losses"]["regress"]


@pytest.mark.parametrize("missing", ["OBJECTIVES", "LOSSES"])
def test_one_half_alone_is_refused(without_it, tmp_path, missing):
    lines = (EXAMPLES / "own_objective.py").read_text().splitlines(keepends=True)
    half = [line for line in lines if not line.strip().startswith(f"{missing}.register(")]
    assert len(half) == len(lines) - 1
    (tmp_path / "own_half.py").write_text("".join(half))
    try:
        with pytest.raises(
            UserError, match=rf"'regress' is registered in \w+ but not in {missing}"
        ):
            import_plugins(["own_half"], str(tmp_path))
    finally:
        sys.modules.pop("own_half", None)
    assert "regress" not in OBJECTIVES.names() and "regress" not in LOSSES.names()
