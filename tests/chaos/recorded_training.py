"""``mmscale train``, whose every rank notes what it has learnt from: a line for each step, in a
file for each rank.

Lines are written after a step's gradients are summed and before the weights change, in one call
that no kill divides. ``CHAOS_RECORD`` names the folder, ``CHAOS_START`` the number of the start.
"""

from mmscale.parallel.launcher_watch import end_with_launcher
from mmscale.parallel.process_end import end_after


def record() -> None:
    """Note what `Metrics.reduce` is given."""
    import json
    import os

    from mmscale.train.metrics import Metrics

    path = f"{os.environ['CHAOS_RECORD']}/rank-{os.environ['RANK']}.jsonl"
    start, reduce = int(os.environ["CHAOS_START"]), Metrics.reduce
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def noting(self, losses, batches, wait, wish):
        sums = reduce(self, losses, batches, wait, wish)
        held = [pair for batch in batches for pair in zip(batch.sequences, batch.keys, strict=True)]
        line = {"start": start, "step": batches[0].step, "sequences": held}
        os.write(handle, (json.dumps(line) + "\n").encode())
        return sums

    Metrics.reduce = noting  # type: ignore[method-assign]


def train() -> None:
    end_with_launcher()
    record()

    from mmscale.cli import main

    main()


if __name__ == "__main__":
    end_after(train)
