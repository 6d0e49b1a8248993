"""How many neighbouring samples are read together where the user leaves it open."""

from __future__ import annotations

from collections.abc import Sequence

from mmscale.data.index.manifest import Manifest

# A request for so many bytes spends its time on bytes, not on the way to the server and back.
_WANTED_BYTES = 4_000_000
_LEAST, _MOST = 16, 256


def default_block(manifests: Sequence[Manifest]) -> int:
    """Samples of a block: a power of two between 16 and 256 so that a block has about 4 MB.

    A pure function of the shards, so that a data set's order is one.
    """
    size = sum(shard.bytes for manifest in manifests for shard in manifest.entries)
    samples = sum(len(manifest) for manifest in manifests)
    block = _LEAST
    while block < _MOST and 2 * block * size <= _WANTED_BYTES * samples:
        block *= 2
    return block
