"""Run under torchrun: every rank holds another modality; the summed gradients must be the single-process ones."""

import sys

import torch
from packings import MEDIA, model_config, random_batch
from torch.distributed.tensor import DTensor

from mmscale.config import Config, ParallelConfig, TrainConfig
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.parallel.clip import clip_gradients
from mmscale.parallel.ranks import join_ranks, leave_ranks
from mmscale.parallel.strategy import build_strategy

KINDS = ["t", "i", "a"]


def main() -> None:
    ranks = join_ranks(ParallelConfig(threads=1))
    config = Config(model=model_config(image_stem="cnn", audio_stem="rnn"), media=MEDIA)
    config.train = TrainConfig(precision="fp32")
    strategy = build_strategy(config, ranks)
    strategy.forward_backward(random_batch(ranks.rank, kinds=KINDS[ranks.rank % 3]), last=True)
    norm = clip_gradients(strategy.model, 0.0)

    alone = FusionTransformer(config.model, config.media)
    initialise(alone, config.model, config.seed)
    for rank in range(ranks.world):
        sum(alone(random_batch(rank, kinds=KINDS[rank % 3])).values()).backward()
    torch.testing.assert_close(norm, clip_gradients(alone, 0.0), rtol=1e-4, atol=1e-6)
    for (name, sharded), whole in zip(strategy.model.named_parameters(), alone.parameters(), strict=True):
        assert isinstance(sharded, DTensor) and isinstance(sharded.grad, DTensor), name
        torch.testing.assert_close(sharded.full_tensor(), whole, rtol=0, atol=0)
        torch.testing.assert_close(sharded.grad.full_tensor(), whole.grad, rtol=1e-4, atol=1e-6)
    leave_ranks()
    print(f"rank {ranks.rank}: gradients agree", file=sys.stderr)


if __name__ == "__main__":
    main()
