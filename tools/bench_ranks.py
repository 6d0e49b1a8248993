"""How a benchmark starts itself again as several processes."""

from __future__ import annotations

import sys


def command_of_ranks(script: str, count: int) -> list[str]:
    """The command by which torchrun starts ``script`` as ``count`` processes of this machine; its
    arguments follow.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return [sys.executable, *launcher, script]
