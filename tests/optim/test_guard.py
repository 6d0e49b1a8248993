"""Steps that are not finite, or spike, change nothing, are told with their samples, and too many
end the run.
"""

import json
import math

import pytest
import torch
from conftest import run_module
from packings import MEDIA, model_config, random_batch

from mmscale.config import OptimizerConfig
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.optim.ema import Ema
from mmscale.optim.guard import StepGuard
from mmscale.optim.optimizer import TrainOptimizer


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_skipped_step_changes_neither_weights_nor_moments_nor_averages(name):
    config = model_config()
    model = FusionTransformer(config, MEDIA)
    initialise(model, config, 0)
    optimizer, ema = TrainOptimizer(model, OptimizerConfig(name=name), config), Ema(model, 0.9)

    def step(skip, poison):
        sum(model(random_batch(1)).values()).backward()
        if poison:
            model.blocks[0].attention.q_proj.weight.grad[0, 0] = math.nan
            model.norm.weight.grad[0] = math.inf
        optimizer.step(torch.tensor(skip))
        optimizer.zero_grad()
        ema.update(5, torch.tensor(skip))
        tensors = dict(model.named_parameters()) | optimizer.state_tensors() | ema.state_tensors()
        return {key: tensor.detach().clone() for key, tensor in tensors.items()}

    before = step(0.0, poison=False)
    skipped = step(1.0, poison=True)
    assert all(torch.equal(before[key], skipped[key]) for key in before)
    after = step(0.0, poison=False)
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert not torch.equal(after["norm.weight"], before["norm.weight"])
    assert not torch.equal(after["ema.norm.weight"], before["ema.norm.weight"])


def test_the_guard_by_hand():
    guard = StepGuard(max_spike=3.0, norm_mean=0.0, steps=0, device=torch.device("cpu"))
    fine = torch.ones(2)
    assert guard.should_skip(torch.tensor(math.nan), fine) == 1 and guard.norm_mean == 0
    assert guard.should_skip(torch.tensor(1.0), torch.tensor([1.0, math.inf])) == 1
    assert guard.should_skip(torch.tensor(2.0), fine) == 0 and guard.norm_mean == 2
    assert guard.should_skip(torch.tensor(50.0), fine) == 0, "the first norms are no spikes yet"
    mean = 2 + 0.02 * 48
    assert guard.norm_mean.item() == pytest.approx(mean)
    for _ in range(30):
        guard.should_skip(guard.norm_mean, fine)
    assert guard.should_skip(torch.tensor(3.1 * mean), fine) == 1
    assert guard.norm_mean.item() == pytest.approx(mean, rel=1e-4), (
        "a spike does not raise the mean"
    )
    assert guard.should_skip(torch.tensor(2.9 * mean), fine) == 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_comes_apart_ends_with_the_steps_and_samples_named(ranks, tmp_path, small_run):
    settings = [
        "train.steps=12",
        "train.max_skipped=3",
        "train.optimizer={lr: 1e30, warmup_steps: 0, clip_norm: 0}",
    ]
    command = [
        "mmscale",
        "train",
        "configs/train/digits.yaml",
        *small_run,
        *settings,
        f"run.dir={tmp_path}",
    ]
    done = run_module(command, ranks=ranks, check=False)
    assert done.returncode != 0
    if ranks == 1:  # torchrun adds a report of its own
        assert "Traceback" not in done.stderr
    assert "not finite or spikes, for the 4. time; more than train.max_skipped=3" in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["keys"]["digits"] for row in rows)
    assert all(len(row["shards"]["digits"]) == len(row["keys"]["digits"]) for row in rows)
