"""Searches, with dry runs that are made up: what fits by the config's own way is found, what is
refused is told.
"""

import json

import pytest
from test_dry_plan import planner, small_config

from mmscale.capacity import search
from mmscale.capacity.dry_run import DryStep
from mmscale.config_file import dump_config, load_config


@pytest.fixture
def made_up(monkeypatch):
    """Steps of one size, or, offloaded, a tenth of it."""

    def dry_run(config, world, sequences, passes):
        whole, there = 4_000_000_000, config.parallel.offload == "cpu"
        memory = {"weights": 0 if there else whole, "activations": 10**9}
        return DryStep(memory | {"total": sum(memory.values())}, 1e12, {}, whole if there else 0)

    monkeypatch.setattr(search, "dry_run", dry_run)


def look(planned):
    lines = []
    return planned.search(lines.append), lines


@pytest.fixture
def stage_2(tmp_path):
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    return str(path)


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {"strategy": "zero3", "offload": "nvme", "offload_dir": "/fast"}),
        (2, {"strategy": "zero2", "deepspeed_config": "JSON"}),
        (1, {"strategy": "fsdp", "offload": "cpu"}),
        (8, {"strategy": "fsdp", "replicas": 2, "tensor": 2}),
        (8, {"strategy": "ddp"}),
        (8, {"strategy": "fsdp", "context": 2}),
    ],
)
@pytest.mark.parametrize("memory", [9e9, 80e9])
def test_what_fits_is_found_and_its_lines_give_it(
    made_up, stage_2, tmp_path, world, parallel, memory
):
    """Pasted behind the command, they change the user's config into the way that was planned."""
    if "deepspeed_config" in parallel:
        parallel = parallel | {"deepspeed_config": stage_2}
    planned = planner(small_config(**parallel), world, memory=memory)
    own = planned.own_way()
    assert planned.evaluate(own).fits
    estimates, lines = look(planned)
    assert own in [way for way, _ in estimates]
    assert estimates[0][1].host == 0 and not [line for line in lines if "refused" in line]
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(planned.config))
    for way, _ in estimates:
        pasted = planner(load_config(path, way.lines(planned.config)), world, memory=memory)
        assert pasted.own_way() == way


def test_only_offloaded_it_fits(made_up):
    """Nothing that holds the weights does; the search keeps offloading, and tries checkpointing."""
    planned = planner(small_config(offload="cpu"), 2, memory=4e9)
    estimates, lines = look(planned)
    assert {way.checkpointing for way, _ in estimates} == {"none", "selective", "full"}
    assert all(way.offload == "cpu" for way, _ in estimates)
    assert sum("does not fit" in line for line in lines) >= 3


def test_what_is_refused_is_not_called_too_large(made_up):
    config = small_config(float8="emulated")
    _, lines = look(planner(config, 8, memory=4e9))
    refused = [line for line in lines if "parallel.tensor=2" in line]
    assert (
        refused and "is refused: parallel.float8=emulated: not with parallel.tensor=2" in refused[0]
    )
    assert sum("does not fit" in line for line in lines) == 3
