"""A user's own DeepSpeed JSON: what adds to the run is taken, what contradicts it is refused by
name.
"""

import json

import pytest
import torch
from small_run import one_rank

from mmscale.config import Config
from mmscale.errors import UserError
from mmscale.parallel.deepspeed_config import deepspeed_settings


def settings(folder, theirs, compute=torch.float32):
    config = Config()
    config.parallel.strategy, config.parallel.deepspeed_config = "zero2", str(folder / "ds.json")
    (folder / "ds.json").write_text(json.dumps(theirs))
    with one_rank() as ranks:
        return deepspeed_settings(config, ranks, compute)


@pytest.mark.parametrize(
    "theirs",
    [
        {},
        {
            "bf16": "auto",
            "fp16": {"enabled": "auto"},
            "bfloat16": {"enabled": False},
            "amp": {"enabled": False},
        },
        {
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": 2, "round_robin_gradients": "auto"},
        },
    ],
)
def test_what_agrees_changes_nothing(tmp_path, theirs):
    for compute in (torch.float32, torch.bfloat16):
        assert settings(tmp_path, theirs, compute) == settings(tmp_path, {}, compute)


def test_what_adds_is_taken(tmp_path):
    theirs = {"wall_clock_breakdown": True, "zero_optimization": {"reduce_bucket_size": 10_000}}
    merged = settings(tmp_path, theirs)
    assert (
        merged["wall_clock_breakdown"]
        and merged["zero_optimization"]["reduce_bucket_size"] == 10_000
    )
    assert merged["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(
    ("theirs", "compute", "message"),
    [
        (
            {"bf16": {"enabled": True}},
            torch.float32,
            r"ds\.json: bf16 is set in .*set train\.precision",
        ),
        (
            {"bfloat16": {"enabled": True}},
            torch.float32,
            r"bfloat16 is set in .*set train\.precision",
        ),
        ({"torch_autocast": {"enabled": True}}, torch.float32, r"torch_autocast is set"),
        ({"amp": {"enabled": True}}, torch.bfloat16, r"amp is set"),
        (
            {"bf16": {"enabled": False}},
            torch.bfloat16,
            r"bf16\.enabled=false contradicts this run's true",
        ),
        ({"fp16": {"enabled": True}}, torch.bfloat16, r"fp16 is not offered"),
        ({"optimizer": {"type": "SGD"}}, torch.float32, r"remove it and set train\.optimizer"),
        (
            {"gradient_clipping": 5},
            torch.float32,
            r"gradient_clipping=5 contradicts this run's 1\.0",
        ),
        (
            {"zero_optimization": {"stage": 3}},
            torch.float32,
            r"zero_optimization\.stage=3 contradicts this run's 2",
        ),
    ],
)
def test_what_contradicts_is_refused(tmp_path, theirs, compute, message):
    with pytest.raises(UserError, match=message):
        settings(tmp_path, theirs, compute)
