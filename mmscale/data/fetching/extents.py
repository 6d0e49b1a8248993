"""Which extents hold the fields of a block of samples: a pure function of the index."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmscale.config import CacheConfig
from mmscale.data.fetching.extent import Extent, FieldCheck
from mmscale.data.fetching.server_ranges import ServerRanges

if TYPE_CHECKING:
    from mmscale.data.index.dataset import Dataset
    from mmscale.data.index.index_files import Shard
    from mmscale.data.index.manifest import Manifest

# Ranges closer than this are one request: the bytes between them cost less than a request does.
_JOINED_BYTES = 256 << 10
_KEPT_BLOCKS = 1024


class _Indexed(NamedTuple):
    """What is needed of a data set. The set itself has its `ExtentMap`: pickled, that would wait
    for it.
    """

    manifests: list[Manifest]
    cache: CacheConfig


class ExtentMap:
    """The extents of a data set, block by block. Local folders of the set have none. Picklable.

    Args:
        dataset: whose samples are meant.
        block: samples of a block; sample i belongs to block i // block. Blocks may cross shards.
        fields: references of the wanted fields (image, json.<path>, …) in any order; None: every
            field that can be read.
    """

    def __init__(
        self, dataset: Dataset | _Indexed, block: int, fields: Collection[str] | None = None
    ) -> None:
        self._indexed, self.block = _Indexed(dataset.manifests, dataset.cache), block
        self.fields = None if fields is None else tuple(sorted(set(fields)))
        self._servers = ServerRanges(dataset.cache.folder())
        ends = list(accumulate(len(manifest) for manifest in dataset.manifests))
        self._spans = [
            (manifest, range(end - len(manifest), end))
            for manifest, end in zip(dataset.manifests, ends, strict=True)
        ]
        self._ranges = lru_cache(_KEPT_BLOCKS)(self._find_ranges)
        self._others: dict[str, ExtentMap] = {}

    def of_block(self, number: int) -> list[Extent]:
        """The extents that hold the wanted fields of block ``number``, in the order of the samples.

        Ranges of a shard that are closer than 256 KiB are one extent. Where the server is known to
        give whole shards alone, an extent is one. Else equal in all processes.
        """
        return list(dict.fromkeys(map(self._servers.attainable, self._ranges(number))))

    def first(self) -> list[Extent]:
        """Those of the first block of each remote folder: what any reader needs room for."""
        blocks = {
            span.start // self.block
            for manifest, span in self._spans
            if isinstance(manifest.base, str)
        }
        return [extent for number in sorted(blocks) for extent in self.of_block(number)]

    def checks(self, extent: Extent) -> list[FieldCheck]:
        """The wanted fields inside ``extent``, for `BlockStore.fetch`."""
        manifest, position = self._places[extent.base, extent.shard.sha256]
        facts = manifest.payloads_between(position, extent.offset, extent.end, self.fields)
        return [FieldCheck(*fact[:3]) for fact in facts.tolist()]

    def containing(self, sample: int, field: str) -> Extent:
        """The extent of the sample's block that holds ``field``, which the sample has.

        A field that is not among the wanted ones is looked for in extents of its own.
        """
        manifest, span = next(entry for entry in self._spans if sample in entry[1])
        row = sample - span.start
        offset, size, *_ = manifest.payloads(np.array([row]), [field])[1][0].item()
        place = manifest.place(manifest.shard_of(row))
        assert isinstance(place.base, str), "a local sample"
        extent = self.holding(sample, field, place.base, place.shard, offset, size)
        assert extent is not None, "a damaged index"
        return self._servers.attainable(extent)

    def holding(
        self, sample: int, field: str, base: str, shard: Shard, offset: int, size: int
    ) -> Extent | None:
        """`containing` by what the index says of the field; None if that lies beyond the shard."""
        for extent in self._ranges(sample // self.block):
            inside = extent.offset <= offset and offset + size <= extent.end
            if inside and extent.shard == shard and extent.base == base:
                return extent
        if self.fields == (field,):
            return None
        if field not in self._others:
            self._others[field] = ExtentMap(self._indexed, self.block, [field])
        return self._others[field].holding(sample, field, base, shard, offset, size)

    @cached_property
    def _places(self) -> dict[tuple[str, str], tuple[Manifest, int]]:
        """Where each remote shard is listed."""
        return {
            (manifest.base, shard.sha256): (manifest, position)
            for manifest, _ in self._spans
            if isinstance(manifest.base, str)
            for position, shard in enumerate(manifest.entries)
        }

    def _find_ranges(self, number: int) -> list[Extent]:
        first, end = number * self.block, (number + 1) * self.block
        return [
            extent
            for manifest, span in self._spans
            if isinstance(manifest.base, str) and first < span.stop and span.start < end
            for extent in _extents(
                manifest,
                np.arange(max(first, span.start), min(end, span.stop)) - span.start,
                self.fields,
            )
        ]

    def __reduce__(self) -> tuple[Any, ...]:
        return ExtentMap, (self._indexed, self.block, self.fields)


def _extents(
    manifest: Manifest, samples: NDArray[np.int64], fields: Collection[str] | None
) -> Iterator[Extent]:
    """Of the wanted fields of the numbered samples of one remote folder."""
    assert isinstance(manifest.base, str)
    shards, facts = manifest.payloads(samples, fields)
    for position in np.unique(shards).tolist():
        shard = manifest.entries[position]
        ranges = facts[shards == position]
        ranges = ranges[_ends_by(ranges, shard.bytes) & (ranges["size"] > 0)]
        if not len(ranges):
            continue
        ranges = ranges[np.argsort(ranges["offset"], kind="stable")]
        starts = ranges["offset"].astype(np.int64)
        ends = np.maximum.accumulate(starts + ranges["size"].astype(np.int64))
        breaks = np.flatnonzero(starts[1:] - ends[:-1] >= _JOINED_BYTES)
        lasts = [*breaks.tolist(), len(ranges) - 1]
        for begin, last in zip([0, *(breaks + 1).tolist()], lasts, strict=True):
            offset = int(starts[begin])
            yield Extent(manifest.base, shard, offset, int(ends[last]) - offset)


def _ends_by(facts: NDArray[Any], end: int) -> NDArray[np.bool_]:
    """Whether each range ends at ``end`` at the latest; a damaged index may say anything."""
    fits: NDArray[np.bool_] = (facts["offset"] <= end) & (facts["size"] <= end - facts["offset"])
    return fits
