"""Optimisers, schedules, averages and width-aware rates, each against a plain computation of the
same thing.
"""

import math

import pytest
import torch
from packings import MEDIA, model_config, random_batch

from mmscale.config import OptimizerConfig
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.model.width import rule_of
from mmscale.optim.ema import Ema
from mmscale.optim.learning_rate import learning_rate
from mmscale.optim.optimizer import TrainOptimizer


def make_model(**changes):
    config = model_config(**changes)
    model = FusionTransformer(config, MEDIA)
    initialise(model, config, 0)
    return model, config


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(
    "choices", [{}, {"untied": ["norm", "feed_forward"], "audio_stem": "rnn"}, {"fusion": "rnn"}]
)
def test_every_parameter_is_updated_by_one_optimiser(name, choices):
    model, config = make_model(**choices)
    model.embedding.weight.requires_grad_(False)
    optimizer = TrainOptimizer(model, OptimizerConfig(name=name), config)
    owned = [
        p
        for inner in optimizer._inner.values()
        for group in inner.param_groups
        for p in group["params"]
    ]
    assert (
        len(owned)
        == len({id(p) for p in owned})
        == sum(p.requires_grad for p in model.parameters())
    )
    if name == "muon":
        by_muon = {
            id(p) for group in optimizer._inner["muon"].param_groups for p in group["params"]
        }
        names = {n for n, p in model.named_parameters() if id(p) in by_muon}
        assert names == {
            n for n, p in model.named_parameters() if n.startswith("blocks.") and p.dim() == 2
        }
    for inner in optimizer._inner.values():
        for group in inner.param_groups:
            assert all((p.dim() >= 2) == (group["weight_decay"] > 0) for p in group["params"])


def test_schedules_at_their_corners():
    config = OptimizerConfig(lr=2.0, warmup_steps=10, final_lr=0.1, decay_share=0.2)
    assert learning_rate(config, 0, 100) == pytest.approx(0.2)
    assert learning_rate(config, 9, 100) == pytest.approx(2.0)
    assert learning_rate(config, 99, 100) == pytest.approx(0.2)
    halfway = (10 + 99) / 2
    assert (
        learning_rate(config, 54, 100)
        == pytest.approx(2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (54 - 10) / 89))))
        and halfway > 54
    )
    config.schedule = "wsd"
    assert [learning_rate(config, step, 100) for step in (10, 50, 79)] == [2.0, 2.0, 2.0]
    assert learning_rate(config, 89, 100) == pytest.approx(2.0 * 0.55)
    assert learning_rate(config, 99, 100) == pytest.approx(0.2)
    assert all(
        learning_rate(config, s, 100) == learning_rate(config, s, 1000) for s in range(80)
    ), "prolongable"
    config.schedule = "constant"
    assert learning_rate(config, 99, 100) == 2.0


def test_average_by_hand():
    model, _ = make_model()
    ema = Ema(model, 0.5)
    expected = model.norm.weight.detach().clone()
    for step in range(4):
        with torch.no_grad():
            model.norm.weight.add_(1.0)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.norm.weight.detach()
    torch.testing.assert_close(ema.averages["norm.weight"], expected)


RULES = {
    "embedding.weight": "input",
    "image_stem.project.weight": "input",
    "audio_stem.conv.project.weight": "input",
    "audio_stem.input_weight_reverse": "hidden",
    "audio_stem.project.weight": "hidden",
    "blocks.1.attention.q_proj.weight": "hidden",
    "blocks.1.feed_forward.down_proj.weight": "hidden",
    "blocks.1.attention.q_norm.weight": "input",
    "embed_head.weight": "output",
    "class_heads.head_a.weight": "output",
    "class_heads.head_a.bias": "input",
}


def test_width_rules_and_their_rates():
    model, config = make_model(base_width=16, width=32, audio_stem="rnn", classes={"a": ["x", "y"]})
    dimensions = {name: p.dim() for name, p in model.named_parameters()}
    for name, rule in RULES.items():
        assert rule_of(name, dimensions[name], config) == rule, name
    assert rule_of("audio_stem.project.weight", 2, model_config()) == "input", (
        "the conv stem's reads channels"
    )
    optimizer = TrainOptimizer(model, OptimizerConfig(lr=1.0, weight_decay=0.1), config)
    optimizer.set_learning_rate(0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in optimizer._inner["adamw"].param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            narrow = rule_of(name, parameter.dim(), config) == "input"
            assert group["lr"] == (0.5 if narrow else 0.25), name
            if parameter.dim() >= 2:
                assert group["weight_decay"] * group["lr"] == pytest.approx(0.05), (
                    "decays alike at every width"
                )


def growth(width, base_width, name="adamw", lr=0.02):
    """Mean absolute change after three steps, at one width: of the logits, or for Muon of what the
    blocks give.
    """
    model, config = make_model(
        width=width,
        heads=width // 8,
        kv_heads=width // 8,
        hidden=width * 3 // 2,
        base_width=base_width,
    )
    optimizer = TrainOptimizer(model, OptimizerConfig(name=name, lr=lr, weight_decay=0.0), config)
    if name == "muon":  # the blocks alone move
        del optimizer._inner["adamw"]
    read = model.hidden if name == "muon" else lambda batch: model.logits(model.hidden(batch))
    batch = random_batch(3, kinds="t")
    before = read(batch).detach()
    for _ in range(3):
        model(batch)["next_token"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return (read(batch) - before).abs().mean().item()


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 0.02), ("muon", 0.001)])
def test_coordinate_check(optimizer, lr):
    """What a few steps change stays of one size at all widths with muP, and grows with the width
    without it.
    """
    widths = [64, 128, 256, 512]
    slopes = {}
    for name, base in (("muP", 64), ("standard", 0)):
        logs = torch.tensor([math.log(growth(width, base, optimizer, lr)) for width in widths])
        x = torch.tensor([math.log(width) for width in widths])
        x = x - x.mean()
        slopes[name] = ((x * (logs - logs.mean())).sum() / (x * x).sum()).item()
    assert -0.35 < slopes["muP"] < 0.2 and slopes["standard"] > 0.5, slopes
