"""``python -m store_reader TASK`` reads extents through the store and prints the bytes it fetched.

TASK is JSON: the cache's config, the extents, how often each is read, and a seed for the order of
each turn.
"""

from __future__ import annotations

import json
import sys
import zlib

from mmscale import prf
from mmscale.config import CacheConfig
from mmscale.data.fetching.block_store import BlockStore
from mmscale.data.fetching.extent import Extent, FieldCheck
from mmscale.data.index.index_files import Shard


def content(number: int, size: int) -> bytes:
    """The bytes of the shard ``<number>.tar``."""
    return (prf.uniform(number, size) * 256).astype("u1").tobytes()


def read_extents(task: str) -> None:
    tree = json.loads(task)
    store = BlockStore(CacheConfig(**tree["cache"]))
    extents = [Extent(**one | {"shard": Shard(**one["shard"])}) for one in tree["extents"]]
    shards = {extent.shard.name: extent.shard.bytes for extent in extents}
    whole = {name: content(int(name.partition(".")[0]), size) for name, size in shards.items()}

    def expected(extent: Extent) -> bytes:
        return whole[extent.shard.name][extent.offset : extent.end]

    def checks(extent: Extent) -> list[FieldCheck]:  # as if it were one field
        return [FieldCheck(extent.offset, extent.length, zlib.crc32(expected(extent)))]

    for turn in range(tree["turns"]):
        order = prf.uniform(prf.derive_key("turn", tree["seed"], turn), len(extents)).argsort()
        for number in order.tolist():
            extent = extents[number]
            data = store.read(extent, extent.offset, extent.length, checks)
            assert data == expected(extent)
    print(store.figures.bytes)


if __name__ == "__main__":
    read_extents(sys.argv[1])
