"""AdamW as a kind: what it remembers, and torch's update by it."""

import math

import pytest
import torch

from mmscale.config import OptimizerConfig
from mmscale.optim.optimizers.adamw import AdamWKind


def test_an_update_by_hand():
    kind, config = AdamWKind(), OptimizerConfig(beta1=0.8, beta2=0.9, eps=1e-6)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    groups = [{"params": [weight], "lr": 0.1, "weight_decay": 0.5}]
    optimizer = kind.build(groups, config, torch.float32)
    optimizer.state[weight] = kind.state(weight, 0)
    weight.grad = torch.tensor([0.5, 0.25])
    optimizer.step()
    # After one step the corrected moments are the gradient and its square.
    expected = torch.tensor([1.0, -2.0]) * (1 - 0.1 * 0.5) - 0.1 * 1.0
    torch.testing.assert_close(weight.detach(), expected)


def test_state_after_some_updates():
    """The count decides how much the moments are corrected after a resume."""
    kind, weight = AdamWKind(), torch.nn.Parameter(torch.zeros(2, 3))
    state = kind.state(weight, 7)
    assert set(state) == {"step", *kind.moments} and state["step"] == 7
    groups = [{"params": [weight], "lr": 1.0, "weight_decay": 0.0}]
    config = OptimizerConfig(beta1=0.9, beta2=0.9, eps=1e-30)
    optimizer = kind.build(groups, config, torch.float32)
    optimizer.state[weight] = state
    weight.grad = torch.ones(2, 3)
    optimizer.step()
    first, second = 0.1 / (1 - 0.9**8), 0.1 / (1 - 0.9**8)
    torch.testing.assert_close(weight.detach(), torch.full((2, 3), -first / math.sqrt(second)))


def test_its_rate_shrinks_with_the_width():
    kind = AdamWKind()
    assert [kind.lr_factor(rule, 0.25) for rule in ("hidden", "output", "input")] == [0.25, 0.25, 1]
    with pytest.raises(AssertionError):
        kind.lr_factor("unknown", 0.25)
