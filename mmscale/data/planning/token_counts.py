"""Token counts of every text of a data set: one pass over the text, then a memory-mapped file.

Planning needs lengths in tokens before a byte of payload is read, and only the tokenizer knows
them. The counts are kept under the tokenizer's and the manifests' digests, so that a later start
maps them at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mmscale.data.index.byte_reader import ShardFault
from mmscale.data.index.dataset import Dataset
from mmscale.data.planning.array_cache import ArrayCache, CachedArray
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import SampleFault, UserError

ABSENT = np.uint32(0xFFFFFFFF)

_CHUNK = 4096


def token_counts(
    dataset: Dataset,
    fields: list[str],
    tokenizer: Tokenizer,
    derived: ArrayCache,
    progress: bool = False,
) -> dict[str, CachedArray]:
    """Arrays uint32 [samples] per field: tokens of its text, `ABSENT` where a sample lacks it or it
    is no text.

    Raises `UserError` if no sample of the set has a field, or a shard cannot be read as it was
    indexed.
    """
    out = {}
    for field in fields:
        dataset.check_field(field)
        counts = kept_token_counts(dataset, field, tokenizer, derived)
        if counts is None:
            name = _file_name(dataset, field, tokenizer)
            counts = derived.save(name, _count(dataset, field, tokenizer, progress))
        out[field] = counts
    return out


def kept_token_counts(
    dataset: Dataset, field: str, tokenizer: Tokenizer, derived: ArrayCache
) -> CachedArray | None:
    """`token_counts` of one field if they are there; no text is read."""
    return derived.load(_file_name(dataset, field, tokenizer), np.uint32, len(dataset))


def iterate_texts(dataset: Dataset, field: str) -> Iterator[str]:
    """Every text of ``field`` that is one, in the order of the samples.

    Raises `UserError` when a shard cannot be read, or not as it was indexed.
    """
    dataset.check_field(field)
    for chunk in _chunks(dataset):
        for sample in chunk[dataset.facts(field, chunk)["offset"] > 0].tolist():
            if (text := _text_or_none(dataset, field, sample)) is not None:
                yield text


def _file_name(dataset: Dataset, field: str, tokenizer: Tokenizer) -> str:
    return ArrayCache.name("tokens", tokenizer.digest, field, *dataset.digests)


def _count(
    dataset: Dataset, field: str, tokenizer: Tokenizer, progress: bool
) -> NDArray[np.uint32]:
    counts = np.full(len(dataset), ABSENT, dtype=np.uint32)
    with tqdm(
        total=len(dataset), desc=f"count tokens of {field}", unit="sample", disable=not progress
    ) as bar:
        for chunk in _chunks(dataset):
            present = chunk[dataset.facts(field, chunk)["offset"] > 0]
            texts = [_text_or_none(dataset, field, sample) for sample in present.tolist()]
            readable = np.array([text is not None for text in texts], dtype=bool)
            counts[present[readable]] = tokenizer.lengths(
                [text for text in texts if text is not None]
            )
            bar.update(len(chunk))
    return counts


def _chunks(dataset: Dataset) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(dataset), _CHUNK):
        yield np.arange(start, min(start + _CHUNK, len(dataset)))


def _text_or_none(dataset: Dataset, field: str, sample: int) -> str | None:
    try:
        return dataset.text(field, sample)
    except ShardFault as fault:
        # Nothing that is kept may follow from it: with the shard restored, the counts would be
        # wrong for ever.
        key = dataset.key(sample)
        raise UserError(
            f"sample {key!r}: {field}: {fault}; restore the shard, or run `mmscale data index` on "
            "its folder"
        ) from None
    except SampleFault:
        return None  # not a text, or a JSON without the path: a property of the indexed bytes
