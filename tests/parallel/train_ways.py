"""Run under torchrun: several runs one after another in the same processes, which start slowly.

``train_ways.py JOBS``: a JSON list of lists of arguments of `mmscale train`.
"""

import json
import os
import socket
import sys
from pathlib import Path

import torch.distributed as dist

from mmscale.config_file import load_config
from mmscale.parallel.process_end import end_after
from mmscale.train.loop import train


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    host, port, rank = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), os.environ["RANK"]
    agent = dist.TCPStore(host, port, is_master=False)
    for number, (config, *overrides) in enumerate(jobs):
        # A group cannot be joined twice at one address.
        if rank == "0":
            with socket.socket() as free:
                free.bind(("", 0))
                agent.set(f"port {number}", str(free.getsockname()[1]))
        os.environ["MASTER_PORT"] = agent.get(f"port {number}").decode()
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        train(load_config(config, overrides))


if __name__ == "__main__":
    end_after(main)
