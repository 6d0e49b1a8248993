"""mosaicml-streaming's side of `bench_streaming`, by an interpreter that has it.

    PYTHON bench_streaming_mosaic.py write TARS OUT SHARD_BYTES
    PYTHON bench_streaming_mosaic.py read JSON      (see `Reading`)
    PYTHON bench_streaming_mosaic.py order JSON     (see `Ordering`)

``read`` prints one JSON object an epoch. ``order`` reads no data: it simulates the library's own
order, partitions and least-recently-used cache of shards on every node, and prints one object.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_WORKERS = 1
_BATCH = 64


@dataclass(kw_only=True)
class Reading:
    """``epochs`` of the set at ``remote``, on one node of ``nodes`` with a cache of its own.

    Attributes:
        endpoint: of the server that speaks for S3.
        block: samples that are shuffled together; 0: the library's own choice.
        predownload: samples; 0: the library's own choice.
    """

    remote: str
    endpoint: str
    local: str
    cache_bytes: int
    node: int
    nodes: int
    canonical: int
    epochs: int
    block: int = 0
    predownload: int = 0


@dataclass(kw_only=True)
class Ordering:
    """One epoch of ``shards`` of ``per_shard`` samples, on ``nodes``; with ``change``, on so many
    others for its second third.

    Attributes:
        batch: samples of a step, over all nodes.
        cache: shards that a node keeps.
        block: samples that are shuffled together; 0: the library's own choice.
    """

    shards: int
    per_shard: int
    nodes: int
    canonical: int
    batch: int
    cache: int
    block: int = 0
    change: int = 0


def write(tars: Path, out: Path, shard_bytes: int) -> None:
    """The samples of a folder of tar shards as MDS shards of about so many bytes."""
    from streaming import MDSWriter

    columns = {"jpg": "bytes", "txt": "bytes"}
    with MDSWriter(out=str(out), columns=columns, size_limit=shard_bytes) as writer:
        for shard in sorted(tars.glob("*.tar")):
            with tarfile.open(shard) as tar:
                sample: dict[str, bytes] = {}
                for member in tar:
                    file = tar.extractfile(member)
                    assert file is not None
                    sample[member.name.rpartition(".")[2]] = file.read()
                    if len(sample) == len(columns):
                        writer.write(sample)
                        sample = {}


def read(wanted: Reading) -> None:
    """Read whole epochs as a training run would, and do nothing with the samples."""
    own_temporary_folder = Path(wanted.local, "tmp")  # locks of the library are named by number
    own_temporary_folder.mkdir(parents=True)
    tempfile.tempdir = str(own_temporary_folder)
    os.environ |= {
        "RANK": str(wanted.node), "WORLD_SIZE": str(wanted.nodes), "LOCAL_WORLD_SIZE": "1",
        "S3_ENDPOINT_URL": f"http://{wanted.endpoint}", "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    import torch.distributed as dist
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    # The nodes are run in turn: nothing but the source joins them.
    dist.is_available = lambda: False
    more: dict[str, Any] = {}
    if wanted.block:
        more["shuffle_block_size"] = wanted.block
    if wanted.predownload:
        more["predownload"] = wanted.predownload
    dataset = StreamingDataset(
        remote=wanted.remote, local=str(Path(wanted.local, "mds")), cache_limit=wanted.cache_bytes,
        shuffle=True, shuffle_algo="py1e", num_canonical_nodes=wanted.canonical,
        batch_size=_BATCH // wanted.nodes, **more,
    )  # fmt: skip
    loader = DataLoader(dataset, batch_size=_BATCH // wanted.nodes, num_workers=_WORKERS)
    for epoch in range(wanted.epochs):
        samples = sum(len(batch["jpg"]) for batch in loader)
        print(json.dumps({"epoch": epoch, "samples": samples}), flush=True)


def order(wanted: Ordering) -> dict[str, float]:
    """How often all nodes together fetch the set, and the most that one node does."""
    fetched = [0] * wanted.nodes
    caches = [_Shards(wanted.cache) for _ in range(wanted.nodes)]
    third = wanted.shards * wanted.per_shard // 3 // wanted.batch * wanted.batch
    phases: list[tuple[int, int, int | None]] = [(wanted.nodes, 0, None)]
    if wanted.change:
        phases = [(wanted.nodes, 0, third), (wanted.change, third, 2 * third)]
        phases.append((wanted.nodes, 2 * third, None))
    for nodes, start, end in phases:
        for node, samples in enumerate(_samples_of_nodes(wanted, nodes, start, end)):
            shards = samples // wanted.per_shard
            # A run of samples of one shard is one look at the cache.
            changes = np.append(True, shards[1:] != shards[:-1])
            fetched[node] += sum(map(caches[node].use, shards[changes].tolist()))
    return {"times": sum(fetched) / wanted.shards, "worst_node": max(fetched) / wanted.shards}


class _Shards:
    """A cache of whole shards; the least recently used goes first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[int, None] = OrderedDict()

    def use(self, shard: int) -> bool:
        """Whether the shard has to be fetched."""
        missing = shard not in self._kept
        self._kept[shard] = None
        self._kept.move_to_end(shard)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return missing


def _samples_of_nodes(
    wanted: Ordering, nodes: int, start: int, end: int | None
) -> list[np.ndarray]:
    """int64 [samples] of every node from sample ``start`` of the epoch to ``end``, in the order of
    its batches: the library's own partitions and shuffle.
    """
    from streaming.base.partition.relaxed import get_partitions_relaxed
    from streaming.base.shuffle.py1e import get_shuffle_py1e

    total = wanted.shards * wanted.per_shard
    block = wanted.block or max(4_000_000 // wanted.canonical, 1 << 18)  # as StreamingDataset
    sizes = np.full(wanted.shards, wanted.per_shard, np.int64)
    shuffled = get_shuffle_py1e(sizes, wanted.canonical, 9176, 0, block)
    parts = get_partitions_relaxed(
        total, wanted.canonical, nodes, 1, 1, wanted.batch // nodes, start, wanted.nodes
    )
    steps = None if end is None else (end - start) // wanted.batch
    rows = parts[:, 0, 0, :steps].reshape(nodes, -1)  # nodes, batches, samples
    return [shuffled[row[row >= 0]] for row in rows]


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == "write":
        tars, out, shard_bytes = arguments
        write(Path(tars), Path(out), int(shard_bytes))
    elif what == "read":
        read(Reading(**json.loads(arguments[0])))
    else:
        print(json.dumps(order(Ordering(**json.loads(arguments[0])))))


if __name__ == "__main__":
    main()
