"""The plan's peak of memory is what the GPU's allocator counts."""

import gc

import pytest
import torch

from mmscale.capacity.dry_batch import dry_batch
from mmscale.capacity.dry_run import dry_run
from mmscale.config import Config, ModelConfig, SetConfig, TaskConfig
from mmscale.parallel.ranks import join_ranks, leave_ranks
from mmscale.parallel.strategy import build_strategy

SEQUENCES = 4


@pytest.fixture(scope="module")
def ranks():
    yield join_ranks(Config().parallel)
    leave_ranks()


def plan_config(strategy, checkpointing):
    sizes = {
        "width": 768, "layers": 8, "heads": 12, "kv_heads": 4, "head_dim": 64, "hidden": 2048,
        "vocab_size": 32768,
    }  # fmt: skip
    config = Config(model=ModelConfig(**sizes))
    config.data.seq_len, config.data.sequences = 2048, SEQUENCES
    tasks = [TaskConfig(input=["image"], target="text"), TaskConfig(input=["audio"], target="text")]
    config.data.sets = {"both": SetConfig(shards=["/none"], tasks=tasks)}
    config.parallel.strategy, config.parallel.checkpointing = strategy, checkpointing
    config.train.precision = "bf16"
    return config


@pytest.mark.parametrize("checkpointing", ["none", "full"])
@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_peak(ranks, strategy, checkpointing):
    config = plan_config(strategy, checkpointing)
    planned = dry_run(config, 1, SEQUENCES).memory["total"]

    gc.collect()  # of the test before
    real = build_strategy(config, ranks)
    real.model.train()
    batch = dry_batch(config, SEQUENCES).to(ranks.device)
    for step in range(3):
        if step == 2:
            torch.cuda.reset_peak_memory_stats()
        real.forward_backward(batch, last=True)
        real.update(step, 1e-4, lambda norm: torch.zeros((), device=norm.device))
    measured = torch.cuda.max_memory_allocated()
    print(
        f"{strategy}, {checkpointing}: planned {planned / 1e6:,.0f} MB, measured "
        f"{measured / 1e6:,.0f} MB"
    )
    assert planned == pytest.approx(measured, rel=0.05)
