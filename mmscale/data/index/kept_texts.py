"""Texts beside the index, where they are a small part of the shards.

Planning counts the tokens of every text, and a tokenizer or a list of classes is made from texts.
Of pictures or speech with captions these are a few bytes in ten thousand, but they lie all over the
shards. So the index pass keeps them, in the order of the samples, as ``texts.<field>.npy`` (uint8).
Where each ends follows from the sizes in the index.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmscale.data.index.probe import kind_of
from mmscale.errors import UserError

if TYPE_CHECKING:
    from mmscale.data.index.index_files import IndexFiles
    from mmscale.data.index.manifest import Manifest

# Of the shards' bytes: a start on remote shards fetches less than 1 % besides what it reads, and
# the rest of the index is in that, too.
_LARGEST_SHARE = 0.005
# Of any set; and what may be kept before the share is known.
_ALWAYS_BYTES, _UNKNOWN_BYTES = 1 << 16, 64 << 20
# Of one shard: with more, no text of the set is kept. So nobody holds many in memory.
_LARGEST_SHARD_SHARE, _ALWAYS_OF_SHARD = 0.1, 1 << 20
_CHUNK = 1 << 20  # rows


def is_text(field: str) -> bool:
    """Whether the field's payload is a text: txt, text, cls or json."""
    return kind_of(field) in ("text", "cls", "json")


def may_be_kept(text_bytes: int, shard_bytes: int, final: bool) -> bool:
    """Whether so many bytes of texts are few beside the shards, or, in the middle of the pass, may
    turn out to be.
    """
    most = max(_ALWAYS_BYTES, _LARGEST_SHARE * shard_bytes)
    return text_bytes <= (most if final else most + _UNKNOWN_BYTES)


def too_many_of_shard(text_bytes: int, shard_bytes: int) -> bool:
    """Whether one shard has so many texts that those of no shard are kept."""
    return text_bytes > max(_ALWAYS_OF_SHARD, _LARGEST_SHARD_SHARE * shard_bytes)


class KeptTexts:
    """The kept texts of a manifest that one field reference means; see `open_texts`."""

    def __init__(self, manifest: Manifest, stored: IndexFiles, fields: list[str]) -> None:
        self._manifest, self._stored, self._fields = manifest, stored, fields
        self._starts = {field: _starts(stored.column(field)) for field in fields}

    def read(self, samples: NDArray[np.int64]) -> Iterator[bytes | None]:
        """The text of each of the ascending ``samples``, neighbours of one chunk; None where it has
        none.

        Raises `UserError` if the index is damaged.
        """
        rows = self._manifest.rows(samples)
        found: list[bytes | None] = [None] * len(rows)
        for field in reversed(self._fields):  # the first that a sample has is the one
            facts, ends = self._facts(field, rows)
            texts = self._stored.texts(field)
            for place in np.flatnonzero(facts["offset"] > 0).tolist():
                size = int(facts["size"][place])
                text = texts[int(ends[place]) - size : int(ends[place])].tobytes()
                if zlib.crc32(text) != int(facts["crc"][place]):
                    raise self._stored.damaged(f"texts.{field}.npy")
                found[place] = text
        yield from found

    def _facts(self, field: str, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Facts of the rows, and where each one's text ends."""
        column = self._stored.column(field)
        first, last = int(rows[0]), int(rows[-1]) + 1
        start = first // _CHUNK * _CHUNK
        sizes = column["size"][start:last].astype(np.int64)
        ends = int(self._starts[field][start // _CHUNK]) + np.cumsum(sizes)
        return column[rows], ends[rows - start]


def open_texts(manifest: Manifest, reference: str) -> KeptTexts | None:
    """The kept texts that a field reference of a config means; None if they are not kept."""
    stored, fields = manifest.stored, manifest.fields_of(reference)
    if not fields or not set(fields) <= stored.kept_texts.keys():
        return None
    return KeptTexts(manifest, stored, fields)


def check_texts(stored: IndexFiles) -> None:
    """Raise `UserError` if a file of kept texts has another length than the index says."""
    for field, size in stored.kept_texts.items():
        if int(_starts(stored.column(field))[-1]) != size:
            raise UserError(str(stored.damaged(f"texts.{field}.npy")))


def _starts(column: NDArray[Any]) -> NDArray[np.int64]:
    """Where the texts of every chunk of rows start, and the end of the last."""
    sums = [
        int(column["size"][start : start + _CHUNK].sum(dtype=np.int64))
        for start in range(0, len(column), _CHUNK)
    ]
    return np.append(0, np.cumsum(sums)).astype(np.int64)
