"""Steps on one GPU give the CPU's curve under every strategy, and the host never waits for them."""

import math
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from packings import MEDIA, model_config, random_batch

from mmscale.config import Config, OptimizerConfig, ParallelConfig, TrainConfig
from mmscale.optim.guard import StepGuard
from mmscale.parallel.ranks import join_ranks, leave_ranks
from mmscale.parallel.strategy import build_strategy

STEPS = 8
SIZES = {"width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "hidden": 96}
STEMS = [
    {},
    {"image_stem": "cnn", "audio_stem": "rnn"},
    {"fusion": "rnn"},
    {"untied": ["feed_forward", "norm"], "dropout": 0.1, "stochastic_depth": 0.1},
]
WAYS = {
    "single": {},
    "compiled": {"compile": True},
    "recomputed": {"checkpointing": "full"},
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    "fsdp, compiled": {"strategy": "fsdp", "compile": True},
    "fsdp, recomputed": {"strategy": "fsdp", "checkpointing": "full"},
    "fsdp, selective": {"strategy": "fsdp", "checkpointing": "selective"},
    "fsdp, compiled, selective": {
        "strategy": "fsdp",
        "compile": True,
        "checkpointing": "selective",
    },
    "fsdp, offloaded": {"strategy": "fsdp", "offload": "cpu"},
    "zero1": {"strategy": "zero1"},
    "zero2": {"strategy": "zero2"},
    "zero3": {"strategy": "zero3"},
}


@pytest.fixture(scope="module")
def ranks():
    yield join_ranks(ParallelConfig(threads=1))
    leave_ranks()


def curve(ranks, sizes, way, precision="fp32", optimizer="adamw", cpu=False, lr=3e-3):
    """Losses of some steps, each with another batch."""
    parallel = ParallelConfig(threads=1, **{"strategy": "single", **way})
    if parallel.strategy.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    config = Config(model=model_config(**SIZES | sizes), media=MEDIA, parallel=parallel)
    config.train = TrainConfig(
        precision=precision, optimizer=OptimizerConfig(name=optimizer, warmup_steps=0)
    )
    config.data.sequences, config.data.seq_len = 3, 160
    ranks = replace(ranks, device=torch.device("cpu")) if cpu else ranks
    strategy = build_strategy(config, ranks)
    strategy.model.train()
    losses = []
    for step in range(STEPS):
        found = strategy.forward_backward(random_batch(step).to(ranks.device), last=True)
        losses.append(sum(found.values()))
        strategy.update(step, lr, lambda norm: torch.zeros((), device=norm.device))
    return [loss.item() for loss in losses]


def gap(one, other):
    return max(abs(a / b - 1.0) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("number", range(len(STEMS)))
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_curve_is_that_of_the_cpu(ranks, number, optimizer):
    cpu = curve(ranks, STEMS[number], {}, optimizer=optimizer, cpu=True)
    assert (
        gap(curve(ranks, STEMS[number], {}, optimizer=optimizer), cpu) < 1e-3 and cpu[-1] != cpu[0]
    )


@pytest.mark.parametrize("way", WAYS)
def test_strategies_give_the_same_curve(ranks, way):
    sizes = {"image_stem": "cnn", "dropout": 0.1}
    cpu = curve(ranks, sizes, {}, cpu=True)
    assert gap(curve(ranks, sizes, WAYS[way]), cpu) < 1e-3, "fp32"
    assert gap(curve(ranks, sizes, WAYS[way], "bf16"), cpu) < 0.05, "bf16"


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
@pytest.mark.parametrize("strategy", ["single", "fsdp"])
def test_float8_stays_near_bf16(ranks, recipe, strategy):
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this GPU has no 8-bit floats by row")
    sizes = {"hidden": 128, "width": 128, "head_dim": 32}
    plain = curve(ranks, sizes, {"strategy": strategy}, "bf16", lr=3e-4)
    eight = curve(
        ranks, sizes, {"strategy": strategy, "float8": recipe, "compile": True}, "bf16", lr=3e-4
    )
    assert 0 < gap(eight, plain) < 0.1


@pytest.mark.parametrize("way", ["single", "fsdp", "fsdp, compiled", "fsdp, recomputed"])
def test_the_host_does_not_wait_for_the_device(ranks, way):
    """Ordinary steps, the guard against steps that are not finite included; a copy to the host
    would raise.
    """
    parallel = ParallelConfig(threads=1, **{"strategy": "single", **WAYS[way]})
    config = Config(model=model_config(**SIZES, image_stem="cnn"), media=MEDIA, parallel=parallel)
    config.train = TrainConfig(precision="bf16", ema=0.99)
    config.data.sequences, config.data.seq_len = 3, 160
    strategy = build_strategy(config, ranks)
    strategy.model.train()
    guard = StepGuard(10.0, 0.0, 0, ranks.device)
    batches = [random_batch(0).to(ranks.device)] * 4

    def step(number):
        losses = strategy.forward_backward(batches[number], last=True)
        sums = torch.stack(list(losses.values()))
        return strategy.update(number, 1e-3, lambda norm: guard.should_skip(norm, sums))[1]

    for number in (0, 1):
        step(number)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        skips = [step(number) for number in (2, 3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [skip.item() for skip in skips] == [0.0, 0.0]
    next(strategy.model.parameters()).data.fill_(math.nan)
    assert step(2).item() == 1.0
