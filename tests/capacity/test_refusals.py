"""Plans refuse what training refuses, in the same words, and nothing else."""

from functools import reduce

import pytest
import torch
from test_dry_plan import small_config

from mmscale.capacity.estimate import Assumptions
from mmscale.capacity.report import describe, facts_of
from mmscale.capacity.search import Planner
from mmscale.errors import UserError
from mmscale.gpu import find_gpu
from mmscale.parallel.ranks import Ranks
from mmscale.parallel.strategy import build_strategy, check_initial_weights


def test_the_planned_gpu_has_the_8_bit_products():
    """And not the CPU the plan is made on."""
    config = small_config(float8="rowwise")
    planned = Planner(
        config=config, world=2, per_node=2, gpu=find_gpu("h100"), assume=Assumptions()
    )
    way = planned.own_way()
    assert "8-bit products" in describe(planned, facts_of(planned, way, planned.evaluate(way), 1e9))
    with pytest.raises(UserError, match="a100-80gb has no 8-bit floating-point products"):
        Planner(
            config=config, world=2, per_node=2, gpu=find_gpu("a100"), assume=Assumptions()
        ).evaluate(way)


@pytest.mark.parametrize(
    ("strategy", "changes", "message"),
    [
        ("zero2", {"train.optimizer.name": "muon"}, "zero2 needs adamw"),
        ("zero2", {"model.init_from": "/none"}, "zero2 cannot begin with others' weights"),
        ("zero3", {"train.adversarial.image": 8.0}, "not with parallel.strategy=zero3"),
        (
            "fsdp",
            {"train.adversarial.image": 8.0, "parallel.context": 2},
            "not with parallel.context=2",
        ),
    ],
)
def test_training_and_plans_refuse_alike(strategy, changes, message):
    config = small_config(strategy=strategy)
    for key, value in changes.items():
        *path, last = key.split(".")
        setattr(reduce(getattr, path, config), last, value)
    planned = Planner(
        config=config, world=2, per_node=2, gpu=find_gpu("h100"), assume=Assumptions()
    )
    with pytest.raises(UserError, match=message):
        planned.evaluate(planned.own_way())
    ranks = Ranks(
        rank=0,
        world=2,
        local_rank=0,
        local_world=1,
        device=torch.device("cpu"),
        parts=config.parallel.context,
    )
    with pytest.raises(UserError, match=message):
        check_initial_weights(config, strategy)  # as a run does that has no checkpoint
        build_strategy(config, ranks)
