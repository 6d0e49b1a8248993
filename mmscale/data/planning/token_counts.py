"""Token counts of every text of a data set: one pass over the text, then a memory-mapped file.

Planning needs lengths in tokens before a byte of payload is read, and only the tokenizer knows
them. The counts are kept under the tokenizer's and the manifests' digests, so that a later start
maps them at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mmscale import prf
from mmscale.config import CacheConfig
from mmscale.data.index.byte_reader import ShardFault
from mmscale.data.index.dataset import Dataset
from mmscale.data.index.index_files import FOLDER
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.remote_index import fetch_beside
from mmscale.data.planning.array_cache import ArrayCache, CachedArray
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError
from mmscale.messages import report

ABSENT = np.uint32(0xFFFFFFFF)

_CHUNK = 4096
# Raise it when a text is read otherwise.
_RULES = "2"
_NPY_HEADER_BYTES = 128  # of a one-dimensional array
# Neighbours that are read together, and more runs of them than are ever sampled.
_RUN, _MANY = 256, 1 << 20


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
            counted = _of_folders(dataset, field, tokenizer)
            if counted is None:
                counted = _count(dataset, field, tokenizer, progress)
            counts = derived.save(counts_file_name(dataset.manifests, field, tokenizer), counted)
        out[field] = counts
    return out


def kept_token_counts(
    dataset: Dataset, field: str, tokenizer: Tokenizer, derived: ArrayCache
) -> CachedArray | None:
    """`token_counts` of one field if they are there; no text is read."""
    name = counts_file_name(dataset.manifests, field, tokenizer)
    return derived.load(name, np.uint32, len(dataset))


def keep_token_counts(manifest: Manifest, tokenizer: Tokenizer, fields: list[str]) -> list[str]:
    """Count the tokens of ``fields`` of a whole folder into its index; names of the files.

    They go with the index wherever it is copied to, so that a start reads no text.
    """
    dataset = Dataset([manifest])
    index = ArrayCache([manifest.root / FOLDER])
    names = []
    for field in fields:
        name = counts_file_name([manifest], field, tokenizer)
        if index.load(name, np.uint32, len(dataset)) is None:
            index.save(name, _count(dataset, field, tokenizer, progress=True))
        names.append(name)
    return names


def iterate_texts(dataset: Dataset, field: str) -> Iterator[str]:
    """Every text of ``field`` that is one, in the order of the samples.

    Raises `UserError` when a shard cannot be read, or not as it was indexed.
    """
    dataset.check_field(field)
    for chunk in _chunks(dataset):
        yield from (text for text in _texts(dataset, field, chunk) if text is not None)


def sample_texts(dataset: Dataset, field: str, most_bytes: int, key: int) -> Iterator[str]:
    """`iterate_texts` of a small set; of a larger one, of runs of neighbours drawn from all over it
    until about ``most_bytes`` were given.
    """
    dataset.check_field(field)
    total = sum(
        int(dataset.facts(field, chunk)["size"].sum(dtype=np.int64)) for chunk in _chunks(dataset)
    )
    if total <= most_bytes:
        yield from iterate_texts(dataset, field)
        return
    runs = -(-len(dataset) // _RUN)
    drawn = prf.Permutation(key, runs)(np.arange(min(runs, _MANY)))
    given = 0
    for run in drawn.tolist():
        samples = np.arange(run * _RUN, min((run + 1) * _RUN, len(dataset)))
        for text in _texts(dataset, field, samples):
            if text is not None:
                given += len(text.encode())
                yield text
        if given >= most_bytes:
            return


def counts_file_name(manifests: list[Manifest], field: str, tokenizer: Tokenizer) -> str:
    """The file that keeps the counts of a field of these folders."""
    digests = [manifest.digest for manifest in manifests]
    named = named_documents(manifests, [field])
    return ArrayCache.name("tokens", _RULES, tokenizer.digest, field, *digests, *named)


def named_documents(manifests: list[Manifest], fields: Iterable[str]) -> list[str]:
    """The JSON fields that ``fields`` mean, but for the plain one.

    What is kept depends on them: releases of before took ``json.info.label`` for a path in the
    plain JSON, whatever else there was.
    """
    documents = {
        document
        for manifest in manifests
        for field in fields
        if field.startswith("json.")
        for document in manifest.fields_of(field)
    }
    return sorted(documents - {"json"})


def _of_folders(dataset: Dataset, field: str, tokenizer: Tokenizer) -> NDArray[np.uint32] | None:
    """The counts that the indexes of all folders of the set bring with them, if they do."""
    parts = []
    for manifest in dataset.manifests:
        name = counts_file_name([Manifest(manifest.stored)], field, tokenizer)
        kept = _beside_index(manifest, name, dataset.cache)
        if kept is None and manifest.has(field):
            return None
        rows = manifest.rows(np.arange(len(manifest)))
        absent = np.full(len(manifest), ABSENT)
        parts.append(absent if kept is None else kept.array[rows])
    return np.concatenate(parts)


def _beside_index(manifest: Manifest, name: str, cache: CacheConfig) -> CachedArray | None:
    """An array of a folder's samples that lies with its index, here or at the remote shards."""
    index, samples = ArrayCache([manifest.root / FOLDER]), manifest.stored.samples
    kept = index.load(name, np.uint32, samples)
    if kept is None and isinstance(manifest.base, str):
        size = _NPY_HEADER_BYTES + 4 * samples
        if fetch_beside(manifest.base, manifest.root, name, size, cache):
            kept = index.load(name, np.uint32, samples)
    return kept


def _count(
    dataset: Dataset, field: str, tokenizer: Tokenizer, progress: bool
) -> NDArray[np.uint32]:
    _say_what_is_read(dataset, field)
    counts = np.full(len(dataset), ABSENT, dtype=np.uint32)
    with tqdm(
        total=len(dataset), desc=f"count tokens of {field}", unit="sample", disable=not progress
    ) as bar:
        for chunk in _chunks(dataset):
            texts = _texts(dataset, field, chunk)
            readable = np.array([text is not None for text in texts], dtype=bool)
            counts[chunk[readable]] = tokenizer.lengths(
                [text for text in texts if text is not None]
            )
            bar.update(len(chunk))
    return counts


def _say_what_is_read(dataset: Dataset, field: str) -> None:
    """Counting reads every text of remote shards; there is a way around it."""
    if dataset.keeps_texts(field):
        return
    size = sum(
        int(dataset.facts(field, chunk)["size"].sum(dtype=np.int64)) for chunk in _chunks(dataset)
    )
    report(
        f"{dataset.manifests[0].base}: all texts of {field} are read to count their tokens "
        f"({size / 1e9:.3g} GB and what lies between them); `mmscale data index --tokenizer FILE "
        f"--count {field}` keeps the counts with the index"
    )


def _chunks(dataset: Dataset) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(dataset), _CHUNK):
        yield np.arange(start, min(start + _CHUNK, len(dataset)))


def _texts(dataset: Dataset, field: str, samples: NDArray[np.int64]) -> list[str | None]:
    try:
        return list(dataset.texts(field, samples))
    except ShardFault:
        # One at a time, to name the one that cannot be read.
        return [_text(dataset, field, sample) for sample in samples.tolist()]


def _text(dataset: Dataset, field: str, sample: int) -> str | None:
    try:
        (text,) = dataset.texts(field, np.array([sample]))
    except ShardFault as fault:
        # Nothing that is kept may follow from it: with the shard restored, the counts would be
        # wrong for ever.
        raise UserError(
            f"sample {dataset.key(sample)!r}: {field}: {fault}; restore the shard, or run "
            "`mmscale data index` on its folder"
        ) from None
    return text
