"""Which extents hold the fields of a block of samples: a pure function of the index."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from mmscale.data.fetching.extent import Extent, FieldCheck

if TYPE_CHECKING:
    from mmscale.data.index.dataset import Dataset


class ExtentMap:
    """The extents of a data set, block by block. Local folders of the set have none. Picklable.

    Args:
        dataset: whose samples are meant.
        block: samples of a block; sample i belongs to block i // block. Blocks may cross shards.
        fields: references of the wanted fields (image, json.<path>, …) in any order; None: every
            field there is.
    """

    def __init__(self, dataset: Dataset, block: int, fields: Collection[str] | None = None) -> None:
        raise NotImplementedError

    def of_block(self, number: int) -> list[Extent]:
        """The extents that hold the wanted fields of block ``number``, in the order of the samples.

        Ranges of a shard that are closer than 256 KiB are one extent. Where the server knows no
        ranges (`server_ranges`) an extent is the whole shard. Else equal in all processes.
        """
        raise NotImplementedError

    def checks(self, extent: Extent) -> list[FieldCheck]:
        """The wanted fields inside ``extent``, for `BlockStore.fetch`."""
        raise NotImplementedError

    def containing(self, sample: int, field: str) -> Extent:
        """The extent of the sample's block that holds ``field``, which the sample has.

        A field that is not among the wanted ones is looked for in extents of its own.
        """
        raise NotImplementedError
