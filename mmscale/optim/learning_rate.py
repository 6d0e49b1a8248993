"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from mmscale.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Rate of step ``step`` of ``steps``: linear warm-up over ``warmup_steps``, then by
    ``schedule``.

    - cosine: down to ``final_lr`` of the peak at the last step (Loshchilov and Hutter, 2017);
    - wsd: warm-up, stable, decay: constant, then linearly down to ``final_lr`` of the peak over the
      last ``decay_share`` of the steps (Hu et al., MiniCPM, 2024). A run may be prolonged from any
      checkpoint before the decay, because until then its rates do not depend on ``steps``;
    - constant.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "wsd":
        first = max(config.warmup_steps, steps - max(1, round(config.decay_share * steps)))
        left = 1.0 - max(0, step - first + 1) / max(1, steps - first)
    else:
        assert config.schedule == "cosine", f"schedule {config.schedule!r}: unknown"
        progress = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
        left = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.final_lr + (1.0 - config.final_lr) * left)
