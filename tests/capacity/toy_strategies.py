"""A dry run in a process that knows two more strategies, which stand in no file of the package.

``toy_strategies.py < ORDER``: ``toy`` shards nothing; ``stray`` makes its model itself.
"""

import torch

from mmscale.capacity.dry_run import main
from mmscale.model.fusion import FusionTransformer
from mmscale.parallel.strategies.single import SingleStrategy
from mmscale.registry import STRATEGIES


class Toy(SingleStrategy):
    """As ``single``, under a name of its own and for any number of ranks."""

    name = "toy"

    @classmethod
    def check_world(cls, world):
        """Any."""


class Stray(Toy):
    """Forgets the builder."""

    name = "stray"

    def __init__(self, config, ranks, compute, builder):
        self.model = FusionTransformer(config.model, config.media)
        self._compute = torch.float32
        self.prepare_update(config, compute)


if __name__ == "__main__":
    STRATEGIES.register("toy", Toy)
    STRATEGIES.register("stray", Stray)
    main()
