"""Run under torchrun: direct exchanges beside the library's own collectives, in groups of all ranks
and of some.
"""

import torch
import torch.distributed as dist

from mmscale.config import ParallelConfig
from mmscale.parallel import gloo_collectives
from mmscale.parallel.process_end import end_after
from mmscale.parallel.ranks import join_ranks, leave_ranks


def main() -> None:
    gloo_collectives._PIECE = 64
    ranks = join_ranks(ParallelConfig(threads=1))
    some = dist.new_group([0, 2])
    assert dist.group.WORLD is not None
    for group in [dist.group.WORLD, *([some] if ranks.rank != 1 else [])]:
        world = group.size()
        for size in (1, 63, 64, 65, 1000):
            generator = torch.Generator().manual_seed(100 * ranks.rank + size)
            inputs = torch.randn(world * size, generator=generator)
            expected, summed = torch.empty(size), torch.empty(size)
            dist.reduce_scatter_tensor(expected, inputs, group=group)
            gloo_collectives.DirectReduceScatter()(summed, inputs, group, dist.ReduceOp.SUM)
            # Eight epsilons: more than the two roundings of three numbers' sum, in any order,
            # while partial sums are below 8.
            torch.testing.assert_close(summed, expected, rtol=1e-6, atol=1e-6)
            for kind in (torch.float32, torch.bfloat16):
                mine = inputs[:size].to(kind)
                whole, other = (
                    torch.empty(world * size, dtype=kind),
                    torch.empty(world * size, dtype=kind),
                )
                dist.all_gather_into_tensor(whole, mine, group=group)
                gloo_collectives.DirectAllGather()(other, mine, group)
                assert torch.equal(whole, other)
                place = other.view(world, size)[group.rank()]  # where FSDP puts it
                other.view(world, size)[(group.rank() + 1) % world] = 0
                gloo_collectives.DirectAllGather()(other, place, group)
                assert torch.equal(whole, other)
    leave_ranks()
    print(f"{ranks.rank} agrees")


if __name__ == "__main__":
    end_after(main)
