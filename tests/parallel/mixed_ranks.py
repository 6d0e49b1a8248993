"""Run under torchrun: ranks of one modality each, and one of none; the gradients must be the
single-process ones.

The arguments are names of `WAYS`; each is tried with all processes.
"""

import os
import sys
from dataclasses import replace

import torch
from packings import MEDIA, model_config, random_batch
from torch.distributed.tensor import DTensor

from mmscale.config import Config, OptimizerConfig, ParallelConfig, TrainConfig
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.parallel.grad_clip import clip_gradients
from mmscale.parallel.process_end import end_after
from mmscale.parallel.ranks import Ranks, join_ranks, leave_ranks
from mmscale.parallel.strategy import build_strategy

KINDS = ["t", "i", "a", ""]
WAYS = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    "hybrid": {"strategy": "fsdp", "replicas": 2},
    "offload": {"strategy": "fsdp", "offload": "cpu"},
    "tensor": {"strategy": "fsdp", "tensor": 2},
    "context": {"strategy": "fsdp", "context": 2},
    "tensor and context": {"strategy": "fsdp", "tensor": 2, "context": 2},
    "zero1": {"strategy": "zero1"},
    "zero2": {"strategy": "zero2"},
    "zero3": {"strategy": "zero3"},
    "zero3 offload": {"strategy": "zero3", "offload": "cpu"},
}


def check(way: str, ranks: Ranks) -> None:
    parallel = ParallelConfig(threads=1, **WAYS[way])
    config = Config(
        model=model_config(image_stem="cnn", audio_stem="rnn"), media=MEDIA, parallel=parallel
    )
    config.train = TrainConfig(
        precision="fp32", optimizer=OptimizerConfig(clip_norm=0.0, warmup_steps=0)
    )
    config.data.seq_len = 160
    ranks = replace(ranks, parts=parallel.tensor * parallel.context)
    config.data.sequences = ranks.data_world
    strategy = build_strategy(config, ranks)
    initial = {name: whole(tensor) for name, tensor in strategy.state_tensors().items()}
    strategy.forward_backward(
        random_batch(ranks.data_rank, kinds=KINDS[ranks.data_rank]), last=True
    )
    norm, _ = strategy.update(0, 1e-3, lambda norm: torch.zeros(()))

    alone = FusionTransformer(config.model, config.media)
    initialise(alone, config.model, config.seed)
    for rank in range(ranks.data_world):
        sum(alone(random_batch(rank, kinds=KINDS[rank])).values()).backward()
    torch.testing.assert_close(norm, clip_gradients(alone, 0.0), rtol=1e-4, atol=1e-6)
    state = {name: whole(tensor) for name, tensor in strategy.state_tensors().items()}
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(initial[f"model.{name}"], parameter.data, rtol=0, atol=0)
        # After one update the first moment is the gradient, times 1 - beta1.
        gradient = state[f"exp_avg.{name}"] / (1.0 - config.train.optimizer.beta1)
        torch.testing.assert_close(
            gradient, parameter.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert (
            not torch.equal(state[f"model.{name}"], parameter.data) or not parameter.grad.any()
        ), name
    # In one call: four processes write.
    os.write(2, f"rank {ranks.rank}: gradients agree: {way}\n".encode())


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def main() -> None:
    joined = join_ranks(ParallelConfig(threads=1))
    for name in sys.argv[1:] or WAYS:
        check(name, joined)
    leave_ranks()


if __name__ == "__main__":
    end_after(main)
