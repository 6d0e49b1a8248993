"""The one way to a model: split while it has no memory, filled where it stays."""

import torch
from packings import MEDIA, model_config

from mmscale.config import Config
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.parallel.build import Builder
from mmscale.parallel.ranks import Ranks


def test_a_model_is_split_before_it_has_memory_and_filled_after():
    config, seen = Config(seed=5, model=model_config(), media=MEDIA), []

    def split(model):
        seen.append({parameter.device.type for parameter in model.parameters()})

    built = Builder().build(
        config,
        Ranks(rank=0, world=1, local_rank=0, local_world=1, device=torch.device("cpu")),
        split,
    )
    assert seen == [{"meta"}]
    expected = FusionTransformer(config.model, config.media)
    initialise(expected, config.model, config.seed)
    for (name, parameter), other in zip(
        built.named_parameters(), expected.parameters(), strict=True
    ):
        assert torch.equal(parameter, other), name


def test_it_lies_where_it_was_sent():
    config = Config(model=model_config(), media=MEDIA)
    ranks, there = (
        Ranks(rank=0, world=1, local_rank=0, local_world=1, device=torch.device("cpu")),
        torch.device("meta"),
    )
    built = Builder().build(config, ranks, device=there)
    assert {parameter.device for parameter in built.parameters()} == {there}
