"""Run under torchrun: every rank fills its shards from a release; together they are the release's
weights.
"""

import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from mmscale.config import ParallelConfig, TrainConfig
from mmscale.parallel.process_end import end_after
from mmscale.parallel.ranks import join_ranks, leave_ranks
from mmscale.parallel.strategy import build_strategy
from mmscale.release.init_from import load_initial_weights
from mmscale.release.open_release import load_release


def main() -> None:
    release = Path(sys.argv[1])
    ranks = join_ranks(ParallelConfig(threads=1))
    predictor, _ = load_release(release, dtype=torch.float32)
    config = predictor.config
    config.train, config.seed = TrainConfig(precision="fp32"), 77
    config.model.init_from = str(release)
    model = build_strategy(config, ranks).model
    expected = dict(predictor.model.named_parameters())
    assert not torch.equal(model.embedding.weight.full_tensor(), expected["embedding.weight"])
    load_initial_weights(model, config.model)
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        torch.testing.assert_close(parameter.full_tensor(), expected[name], rtol=0, atol=0)
    leave_ranks()
    print(f"rank {ranks.rank}: filled", file=sys.stderr)


if __name__ == "__main__":
    end_after(main)
