"""The side of the webdataset library in `bench_streaming`:
``PYTHON bench_streaming_webdataset.py JSON``.

Plain use of it: shards in shuffled order, straight from the server, a buffer of samples to shuffle
in, shards dealt to nodes by number. It keeps nothing on the disk. Prints one JSON object an epoch.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass

_BUFFER = 1000  # samples


@dataclass(kw_only=True)
class WebReading:
    """``epochs`` of the shards at ``urls``, on one node of ``nodes``."""

    urls: list[str]
    node: int
    nodes: int
    epochs: int


def read(wanted: WebReading) -> None:
    """Read whole epochs as a training run would, and do nothing with the samples."""
    os.environ |= {"RANK": str(wanted.node), "WORLD_SIZE": str(wanted.nodes)}
    import webdataset

    stages = webdataset.WebDataset(
        wanted.urls, shardshuffle=len(wanted.urls), seed=0, nodesplitter=webdataset.split_by_node
    ).shuffle(_BUFFER)
    loader = webdataset.WebLoader(stages, batch_size=None, num_workers=1)
    for epoch in range(wanted.epochs):
        print(json.dumps({"epoch": epoch, "samples": sum(1 for _ in loader)}), flush=True)


if __name__ == "__main__":
    read(WebReading(**json.loads(sys.argv[1])))
