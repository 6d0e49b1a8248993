"""Strategies by name: what each goes with is said by itself, and no name is taken for another."""

import pytest
import torch

from mmscale.config import Config, ParallelConfig
from mmscale.config.parallel import check_parallel
from mmscale.config_file import load_config
from mmscale.errors import UserError
from mmscale.parallel.ranks import Ranks
from mmscale.parallel.strategy import Strategy, build_strategy, usual_strategy
from mmscale.registry import STRATEGIES

NAMES = ("ddp", "fsdp", "single", "zero1", "zero2", "zero3")


def test_every_file_is_a_strategy_of_its_name():
    assert STRATEGIES.names() == NAMES
    for name, kind in STRATEGIES.all().items():
        assert issubclass(kind, Strategy) and kind.name == name


@pytest.mark.parametrize("world", [1, 2])
def test_auto_is_a_strategy(world):
    STRATEGIES[usual_strategy(world)].check_world(world)


def test_an_unknown_name_is_an_error():
    with pytest.raises(UserError, match=r"parallel\.strategy.*zero4"):
        load_config("configs/train/digits.yaml", ["parallel.strategy=zero4"])
    config = Config()
    config.parallel.strategy = "zero4"
    with pytest.raises(AssertionError, match="no strategy is named 'zero4'"):
        check_parallel(config.parallel)
    with pytest.raises(AssertionError, match="no strategy is named 'zero4'"):
        build_strategy(
            config, Ranks(rank=0, world=1, local_rank=0, local_world=1, device=torch.device("cpu"))
        )


@pytest.mark.parametrize(
    ("keys", "allowed"),
    [
        ({}, NAMES),
        ({"replicas": 2}, ["fsdp"]),
        ({"tensor": 2}, ["fsdp"]),
        ({"context": 2}, ["fsdp"]),
        ({"float8": "emulated"}, ["ddp", "fsdp", "single"]),
        ({"offload": "cpu"}, ["fsdp", "zero2", "zero3"]),
        ({"offload": "nvme", "offload_dir": "/fast"}, ["zero3"]),
        ({"deepspeed_config": "ds.json"}, ["zero1", "zero2", "zero3"]),
    ],
)
def test_a_key_goes_with_some(keys, allowed):
    """The others' refusal names those it goes with; ``auto`` waits until it is known."""
    check_parallel(ParallelConfig(**keys))
    for name in NAMES:
        config = ParallelConfig(strategy=name, **keys)
        if name in allowed:
            check_parallel(config)
            continue
        with pytest.raises(UserError, match=rf"not.* parallel\.strategy={name}") as refused:
            check_parallel(config)
        assert all(other in str(refused.value) for other in allowed)
