"""Reading fields of remote shards through the cache, checked against the index."""

from __future__ import annotations

import zlib
from pathlib import Path

from mmscale.data.fetching.block_store import BlockStore
from mmscale.data.fetching.extents import ExtentMap
from mmscale.data.index.byte_reader import ShardFault
from mmscale.data.index.manifest import ShardPlace
from mmscale.data.storage.remote_file import RemoteFault


class RemoteReader:
    """Reads of samples by the extents of their blocks; what is missing is fetched. Picklable.

    Args:
        extents: of the data set.
        store: where they are kept.
    """

    def __init__(self, extents: ExtentMap, store: BlockStore) -> None:
        self._extents, self._store = extents, store

    def follow(self, run: Path) -> None:
        """See `BlockStore.follow`."""
        self._store.follow(run)

    def read(
        self, sample: int, field: str, place: ShardPlace, offset: int, size: int, crc: int
    ) -> bytes:
        """``size`` bytes at ``offset`` of a remote shard, whose CRC-32 must be ``crc``.

        Raises:
            ShardFault: the shard is gone, cannot be fetched, is too short, or holds other bytes.
            UserError: the cache is too small for the extent.
        """
        assert isinstance(place.base, str)
        name = place.shard.name
        extent = self._extents.holding(sample, field, place.base, place.shard, offset, size)
        if extent is None:
            if size:
                raise ShardFault(f"shard {name} ends before byte {offset + size}")
            return b""
        while True:
            try:
                data = self._store.read(extent, offset, size, self._extents.checks)
            except RemoteFault as fault:
                raise ShardFault(f"shard {name} cannot be fetched ({fault})") from None
            if len(data) == size and zlib.crc32(data) == crc:
                return data
            if not self._store.mend(extent):
                raise ShardFault(f"shard {name} changed since it was indexed (CRC-32 differs)")
