"""Plans count the passes of adversarial training."""

import pytest
from test_dry_plan import planner, small_config


def test_every_attack_step_is_a_forward_and_a_backward_pass():
    """Which makes no gradients of weights: two thirds of a pass of training, or a little more for
    attention.
    """
    config = small_config(strategy="fsdp")
    estimates = {}
    for steps in (0, 1, 3):
        config.train.adversarial.image, config.train.adversarial.steps = float(steps), max(1, steps)
        planned = planner(config, world=2)
        estimates[steps] = planned.evaluate(planned.own_way())
    plain, once, thrice = (
        estimates[0].computed_flops,
        estimates[1].computed_flops,
        estimates[3].computed_flops,
    )
    assert 1.6 * plain < once < 1.8 * plain
    assert thrice - plain == pytest.approx(3 * (once - plain))
    assert estimates[3].compute_s > estimates[1].compute_s > estimates[0].compute_s
    assert estimates[3].model_flops == estimates[0].model_flops
    assert estimates[3].exchange_s > 2 * estimates[0].exchange_s, (
        "weights are gathered for every pass"
    )
