"""The unit of transfer: a run of bytes of one remote shard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mmscale.data.storage.url import join_url

if TYPE_CHECKING:
    from mmscale.data.index.index_files import Shard


@dataclass(frozen=True)
class Extent:
    """Bytes [``offset``, ``offset + length``) of ``shard``, which lies in the remote folder
    ``base``.
    """

    base: str
    shard: Shard
    offset: int
    length: int

    @property
    def name(self) -> str:
        """A file name that no other bytes have."""
        return f"{self.shard.sha256}-{self.offset}-{self.length}"

    @property
    def url(self) -> str:
        """URL of the shard."""
        return join_url(self.base, self.shard.name)

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.offset + self.length

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its shard."""
        return self.length == self.shard.bytes

    def whole(self) -> Extent:
        """All of its shard."""
        return Extent(self.base, self.shard, 0, self.shard.bytes)


class FieldCheck(NamedTuple):
    """One field inside an extent: ``offset`` in the shard, ``size`` in bytes, CRC-32."""

    offset: int
    size: int
    crc: int
