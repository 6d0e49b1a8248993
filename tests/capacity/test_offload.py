"""Plans of what waits in the host's memory: it is none of the device's."""

import json

import pytest
from test_dry_plan import planner, small_config

from mmscale.capacity.dry_run import dry_run
from mmscale.capacity.report import describe, facts_of
from mmscale.model.count import count_parameters
from mmscale.registry import STRATEGIES


def test_offloaded_state_is_none_of_the_device():
    """Weights and moments are not there at the peak, nor are gradients that were summed."""
    config = small_config(checkpointing="full")
    here = dry_run(config, 2, 1)
    config.parallel.offload = "cpu"
    there = dry_run(config, 2, 1)
    share = 4 * count_parameters(config.model, config.media)["total"] / 2
    assert (
        there.memory["total"]
        <= here.memory["total"] - here.memory["weights"] - here.memory["optimiser"]
    )
    assert not {"weights", "optimiser", "gradients", "host"} & there.memory.keys()
    assert there.host == pytest.approx(4 * share, rel=0.02), "and gradients"
    assert (there.flops, there.sent) == (here.flops, here.sent)


def test_gradients_that_wait_for_the_last_pass_stay_on_the_device():
    config = small_config(checkpointing="full", offload="cpu")
    whole = 4 * count_parameters(config.model, config.media)["total"]
    assert dry_run(config, 8, 1, passes=2).memory["gradients"] > 0.98 * whole


@pytest.mark.parametrize("how", ["json", "key"])
def test_deepspeed_offloads_by_stage(tmp_path, how):
    """Stage 2 keeps its weights in the compute type; stage 3 what its JSON does not offload."""
    path = tmp_path / "deepspeed.json"
    place = {"offload_optimizer": {"device": "cpu"}} if how == "json" else {}
    path.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 1000, **place}}))
    steps = {}
    config = small_config(strategy="zero3", deepspeed_config=str(path))
    share = count_parameters(config.model, config.media)["total"] // 2
    config.parallel.offload = "cpu" if how == "key" else "none"
    sharded = STRATEGIES["zero3"].stand_in(config, 2).config
    assert sharded.parallel.offload == "cpu"
    dry = dry_run(sharded, 2, 1)
    for stage in ("zero2", "zero3"):
        config.parallel.strategy = stage
        steps[stage] = dry.beside(STRATEGIES[stage].stand_in(config, 2))
    added = {stage: step.memory["total"] - dry.memory["total"] for stage, step in steps.items()}
    assert added["zero2"] == 2 * (1000 + 2048 * 256), "the bucket, and the largest gradient"
    assert added["zero3"] == 4 * 1000 + (2 * share if how == "json" else 0)
    assert steps["zero3"].host - dry.host == (2 * share if how == "key" else 0)


def test_a_plan_reports_what_it_does_not_count():
    config = small_config(offload="cpu")
    planned = planner(config, world=2)
    way = planned.own_way()
    assert "not counted" in describe(planned, facts_of(planned, way, planned.evaluate(way), 1e9))
