"""One of two ranks, each on a machine of its own, the second of them sick: ``python -m sick FAULT
CONFIG …``.
"""

import json
import os
import socket
import sys
import time

import torch
from patience import patience

from mmscale.config_file import load_config
from mmscale.doctor import shards
from mmscale.doctor.examine import examine
from mmscale.parallel.ranks import meet_ranks


def main() -> None:
    fault, config, *overrides = sys.argv[1:]
    is_sick = os.environ["RANK"] == "1"
    # The machine has no address of this name, so both are found at 127.0.0.1.
    socket.gethostname = lambda: "sick" if is_sick else "sound"
    clock, config = time.time, load_config(config, overrides)
    if is_sick and fault == "many":
        clock = lambda: time.time() + 100  # noqa: E731
        torch.__version__ = "1.0"
        next(iter(config.data.sets.values())).shards[0] += "/absent"
        config.run.dir = "/proc/run"
    if is_sick and fault == "hangs":
        shards.collect = lambda config: time.sleep(600)
    # Only a rank that hangs is to be waited for in vain, and long enough for all that a busy
    # machine needs before.
    report = examine(
        config,
        meet_ranks(patience(10)),
        clock=clock,
        patience_s=10 if fault == "hangs" else patience(10),
    )
    if not is_sick:
        print(json.dumps(report.facts()))


if __name__ == "__main__":
    main()
