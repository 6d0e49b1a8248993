"""What a data set has in its storage, from its index alone: bytes, requests, tokens of an epoch.

No payload is read and no server is asked, so that a plan needs neither. Large sets are looked at in
places that are drawn from the whole of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmscale import prf
from mmscale.config import CacheConfig, Config, SetConfig
from mmscale.data.index.dataset import Dataset
from mmscale.data.index.default_block import default_block
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.remote_index import kept_index
from mmscale.data.planning.array_cache import ArrayCache, CachedArray
from mmscale.data.planning.sample_sizes import SampleMeasure, text_fields
from mmscale.data.planning.token_counts import ABSENT, kept_token_counts
from mmscale.data.storage.shard_patterns import expand, group_by_folder
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

# Where texts have not been counted, as for English and Chinese with most vocabularies.
BYTES_PER_TOKEN = 4

_LOOKED_AT_BLOCKS = 512
_LOOKED_AT_SAMPLES = 32_768


@dataclass(frozen=True, kw_only=True)
class StoredSet:
    """What one epoch of a set takes.

    Attributes:
        bytes: of the fields its tasks read, and for remote shards of what is fetched with them.
        requests: to the servers of remote shards.
        tokens: of the samples that a sequence can hold.
        counted: whether the tokens of its texts are known, not assumed by `BYTES_PER_TOKEN`.
        remote_bytes: of ``bytes``, what is fetched from servers.
    """

    samples: int
    block: int
    bytes: float
    remote_bytes: float
    requests: float
    tokens: float
    counted: bool

    @property
    def blocks(self) -> int:
        """Blocks of neighbouring samples."""
        return -(-self.samples // self.block)


def look_at(set_config: SetConfig, config: Config, tokenizer: Tokenizer | None) -> StoredSet:
    """Look at the index of a set, if it is on this machine.

    Without a ``tokenizer`` no counts of tokens can be there.

    Raises `UserError` saying what would make it known.
    """
    manifests = _manifests(set_config.shards, config.data.cache)
    block = config.data.block or default_block(manifests)
    fields = list(dict.fromkeys(name for task in set_config.tasks for name in task.fields()))
    read = [_payload(manifest, block, fields, config.data.cache) for manifest in manifests]
    tokens, counted = _tokens(
        Dataset(manifests, config.data.cache, block=block), set_config, config, tokenizer
    )
    return StoredSet(
        samples=sum(map(len, manifests)),
        block=block,
        bytes=sum(size for size, _ in read),
        remote_bytes=sum(size for size, requests in read if requests),
        requests=sum(requests for _, requests in read),
        tokens=tokens,
        counted=counted,
    )


def _manifests(shards: list[str], cache: CacheConfig) -> list[Manifest]:
    """As `open_manifests`, without a look at shards and servers."""
    manifests = []
    for folder, names in group_by_folder(expand(shards)):
        root = folder if isinstance(folder, Path) else kept_index(folder, cache)
        if root is None:
            raise UserError(
                f"the index of {folder} is not on this machine; name a copy of it (`mmscale data "
                "index … --out DIR` makes one)"
            )
        manifest = Manifest.load(root)
        manifests.append(manifest if names is None else manifest.restrict(names))
    return manifests


def _payload(
    manifest: Manifest, block: int, fields: list[str], cache: CacheConfig
) -> tuple[float, float]:
    """(bytes, requests) of an epoch; no requests where the shards are local."""
    blocks = -(-len(manifest) // block)
    chosen = _drawn(blocks, _LOOKED_AT_BLOCKS)
    scale = blocks / len(chosen)
    if isinstance(manifest.base, Path):
        samples = (chosen[:, None] * block + np.arange(block)).reshape(-1)
        _, facts = manifest.payloads(samples[samples < len(manifest)], fields)
        return scale * float(facts["size"].sum()), 0.0
    extents = Dataset([manifest], cache, block=block, fields=fields).extents
    assert extents is not None
    found = [extent for number in chosen.tolist() for extent in extents.of_block(number)]
    if any(extent.is_whole for extent in found):  # the server knows no ranges
        return float(sum(shard.bytes for shard in manifest.entries)), float(len(manifest.entries))
    return scale * sum(extent.length for extent in found), scale * len(found)


def _tokens(
    dataset: Dataset, set_config: SetConfig, config: Config, tokenizer: Tokenizer | None
) -> tuple[float, bool]:
    """(tokens of an epoch, whether those of its texts were counted)."""
    chosen = _drawn(len(dataset), _LOOKED_AT_SAMPLES)
    derived = ArrayCache.beside(dataset)
    texts: dict[str, CachedArray] = {}
    counted = True
    for field in text_fields(set_config.tasks):
        kept = tokenizer and kept_token_counts(dataset, field, tokenizer, derived)
        if not kept:
            counted = False
        texts[field] = kept or _assumed_counts(dataset, field, chosen)
    measure = SampleMeasure(
        config=set_config, dataset=dataset, text_tokens=texts,
        tokenizer=tokenizer or Tokenizer.train([task.prompt for task in set_config.tasks], 300),
        media=config.media, seq_len=config.data.seq_len,
    )  # fmt: skip
    tokens = float(measure.sizes(chosen).tokens.sum())
    return tokens * len(dataset) / len(chosen), counted


def _assumed_counts(dataset: Dataset, field: str, chosen: NDArray[np.int64]) -> CachedArray:
    facts = dataset.facts(field, chosen)
    tokens = -(-facts["size"].astype(np.int64) // BYTES_PER_TOKEN)
    # Of the samples that nobody asks for, nothing is ever written, so they take no memory.
    counts = np.zeros(len(dataset), np.uint32)
    counts[chosen] = np.where(facts["offset"] > 0, tokens, ABSENT)
    return CachedArray(counts)


def _drawn(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of the numbers below ``count``, ascending; the same ones at every call."""
    if count <= most:
        return np.arange(count)
    shuffle = prf.Permutation(prf.derive_key("look at", count), count)
    return np.sort(shuffle(np.arange(most)))
