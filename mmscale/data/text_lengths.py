"""Token counts of every text of a data set: one pass over the text, then a file beside the index.

Planning needs lengths in tokens before a byte of payload is read, and only the tokenizer knows them. The
counts are cached under the tokenizer's and the manifest's digest, so that a later start reads them back.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mmscale.data.corpus import Corpus
from mmscale.data.segments import ABSENT
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import SampleFault

_CHUNK = 4096


def token_counts(
    corpus: Corpus, fields: list[str], tokenizer: Tokenizer, progress: bool = False
) -> dict[str, NDArray[np.uint32]]:
    """uint32 [samples] per field: tokens of its text, `ABSENT` where a sample lacks it or it cannot be read."""
    out = {}
    for field in fields:
        cache = _cache_path(corpus, field, tokenizer)
        counts = _read_cache(cache, len(corpus))
        if counts is None:
            counts = _count(corpus, field, tokenizer, progress)
            _write_cache(cache, counts)
        out[field] = counts
    return out


def iterate_texts(corpus: Corpus, field: str) -> list[str]:
    """Every readable text of ``field``, in the order of the samples."""
    present = np.nonzero(corpus.facts(field)["offset"] > 0)[0]
    return [text for sample in present.tolist() if (text := _text_or_none(corpus, field, sample)) is not None]


def _count(corpus: Corpus, field: str, tokenizer: Tokenizer, progress: bool) -> NDArray[np.uint32]:
    counts = np.full(len(corpus), ABSENT, dtype=np.uint32)
    present = np.nonzero(corpus.facts(field)["offset"] > 0)[0]
    with tqdm(total=len(present), desc=f"count tokens of {field}", unit="text", disable=not progress) as bar:
        for start in range(0, len(present), _CHUNK):
            chunk = present[start : start + _CHUNK]
            texts = [_text_or_none(corpus, field, int(sample)) for sample in chunk]
            readable = np.array([text is not None for text in texts])
            counts[chunk[readable]] = tokenizer.lengths([text for text in texts if text is not None])
            bar.update(len(chunk))
    return counts


def _text_or_none(corpus: Corpus, field: str, sample: int) -> str | None:
    try:
        return corpus.text(field, sample)
    except SampleFault:
        return None  # it will be found again, and written to quarantine, by `mmscale data verify`


def _cache_path(corpus: Corpus, field: str, tokenizer: Tokenizer) -> Path:
    parts = [tokenizer.digest, field, *corpus.digests]
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    return corpus.manifests[0].root / "index" / f"tokens.{name}.npy"


def _read_cache(path: Path, total: int) -> NDArray[np.uint32] | None:
    try:
        counts = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return counts if counts.shape == (total,) and counts.dtype == np.uint32 else None


def _write_cache(path: Path, counts: NDArray[np.uint32]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.save(file, counts)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a read-only data folder costs the next start a pass, nothing else
