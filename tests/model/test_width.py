"""The rule and the factors of every parameter of every size, against a second writing of the
table.
"""

import itertools
import re

import pytest
import torch
from conftest import ROOT
from packings import model_config

from mmscale.config import MediaConfig, ModelConfig
from mmscale.model.fusion import FusionTransformer
from mmscale.model.width import initial_factor, rule_of, width_ratio
from mmscale.registry import OPTIMIZERS
from mmscale.strict_yaml import read_yaml

SIZES = sorted(path.name for path in (ROOT / "configs/model").glob("*.yaml"))
RULES = [
    (r"blocks\..*", "hidden"),
    (r"audio_stem\.(input|state)_weight(_reverse)?", "hidden"),  # of the rnn stem alone
    (r"audio_stem\.project\.weight", {"rnn": "hidden", "conv": "input"}),
    (r"(embed_head|class_heads\.head_.)\.weight", "output"),
    (r"embedding\.weight", "input"),
    (r"image_stem\.(first|project|convs\.\d)\.weight", "input"),
    (r"audio_stem\.(conv\.)?(project|convs\.\d)\.weight", "input"),
]
BASE = 32


def expected_rule(name: str, dimensions: int, audio_stem: str) -> str:
    if dimensions < 2:
        return "input"
    rule = next(rule for pattern, rule in RULES if re.fullmatch(pattern, name))
    return rule[audio_stem] if isinstance(rule, dict) else rule


@pytest.mark.parametrize("size", SIZES)
def test_rules_and_factors_of_every_parameter(size):
    sizes = read_yaml((ROOT / "configs/model" / size).read_text())
    choices = itertools.product(
        ("patch", "cnn"), ("conv", "rnn"), ("transformer", "rnn"), ([], ["feed_forward", "norm"])
    )
    for image, audio, fusion, untied in choices:
        changes = {
            "vocab_size": 64, "layers": 2, "classes": {"a": ["x", "y"], "b": ["z"]},
            "image_stem": image, "audio_stem": audio, "fusion": fusion, "untied": untied,
        }  # fmt: skip
        config = ModelConfig(**sizes | changes)
        with torch.device("meta"):
            model = FusionTransformer(config, MediaConfig())
        for name, parameter in model.named_parameters():
            axes = parameter.dim()
            rule = expected_rule(name, axes, audio)
            for config.base_width in (0, BASE):
                ratio = BASE / config.width if config.base_width else 1.0
                assert rule_of(name, axes, config) == rule, name
                assert width_ratio(config) == ratio
                for optimizer, grown in (("adamw", ratio), ("muon", ratio**0.5)):
                    factor = OPTIMIZERS[optimizer].lr_factor(rule, ratio)
                    assert factor == (1.0 if rule == "input" else grown)
                assert initial_factor(name, axes, config) == (ratio**0.5 if rule == "output" else 1)


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("name", ["second_head.weight", "module.blocks.0.weight", "norms.weight"])
def test_a_parameter_that_nobody_gave_a_rule_is_an_error(name, dimensions):
    with pytest.raises(AssertionError, match=rf"{name}: has no width rule; .*width\._RULES"):
        rule_of(name, dimensions, model_config())
