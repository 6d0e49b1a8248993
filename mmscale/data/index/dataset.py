"""All samples of one data set, over any number of indexed shard folders, under one numbering."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.config import CacheConfig
from mmscale.data.fetching.block_store import BlockStore
from mmscale.data.fetching.extents import ExtentMap
from mmscale.data.index.byte_reader import ByteReader
from mmscale.data.index.default_block import default_block
from mmscale.data.index.index_files import FACTS
from mmscale.data.index.json_field import json_text
from mmscale.data.index.kept_texts import KeptTexts, open_texts
from mmscale.data.index.manifest import FieldLocator, Manifest, open_manifests
from mmscale.data.index.remote_reader import RemoteReader
from mmscale.errors import SampleFault


class Dataset:
    """Samples 0..N-1 of a data set. Picklable; file handles are opened again in each worker.

    Args:
        manifests: the folders, one after another.
        cache: for remote ones.
        block: how many neighbouring samples of remote folders are fetched together; 0:
            `default_block`.
        fields: references of the fields that are fetched with a block; None: all. Others can be
            read, too.

    Attributes:
        extents: what is fetched for each block; None where every folder is local.
    """

    def __init__(
        self,
        manifests: list[Manifest],
        cache: CacheConfig | None = None,
        *,
        block: int = 0,
        fields: Collection[str] | None = None,
    ) -> None:
        self.manifests = manifests
        self.cache = cache or CacheConfig()
        self._ends = list(accumulate(len(manifest) for manifest in manifests))
        self._located: dict[tuple[int, str], FieldLocator | None] = {}
        self._kept_texts: dict[tuple[int, str], KeptTexts | None] = {}
        self._paths: dict[tuple[int, str], str | None] = {}
        self._local = ByteReader()
        self.extents: ExtentMap | None = None
        if any(isinstance(manifest.base, str) for manifest in manifests):
            self.extents = ExtentMap(self, block or default_block(manifests), fields)
            self._remote = RemoteReader(self.extents, BlockStore(self.cache))

    @classmethod
    def open(
        cls,
        shards: list[str],
        cache: CacheConfig | None = None,
        *,
        block: int = 0,
        fields: Collection[str] | None = None,
    ) -> Dataset:
        """Open folders, files, URLs or brace patterns. Raises `UserError` naming what is missing,
        and if the cache cannot be used or is too small.
        """
        cache = cache or CacheConfig()
        dataset = cls(open_manifests(shards, cache), cache, block=block, fields=fields)
        if dataset.extents is not None:
            BlockStore(cache).open_folder(dataset.extents.first())
        return dataset

    def follow(self, run: Path) -> None:
        """Leave it to the run of that folder of the cache to fetch what is read, if it does."""
        assert self.extents is not None, "a local set"
        self._remote.follow(run)

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def digests(self) -> list[str]:
        """Identity of every manifest."""
        return [manifest.digest for manifest in self.manifests]

    def key(self, sample: int) -> str:
        """The sample's WebDataset key, which samples of other shards may have too: see `shard`."""
        manifest, row = self._find(sample)
        return self.manifests[manifest].key(row)

    def shard(self, sample: int) -> str:
        """Name of the shard that holds the sample: with the key what distinguishes it in the set.

        With its folder where the set has shards of that name in several.
        """
        number, row = self._find(sample)
        manifest = self.manifests[number]
        name = manifest.shards[manifest.shard_of(row)]
        return f"{manifest.base}/{name}" if name in self._shared_names else name

    @cached_property
    def _shared_names(self) -> set[str]:
        """Names of shards that are in several folders."""
        if len(self.manifests) == 1:
            return set()
        counts = Counter(name for manifest in self.manifests for name in manifest.shards)
        return {name for name, count in counts.items() if count > 1}

    def check_field(self, field: str) -> None:
        """Raise `UserError` listing the fields there are if no folder of the set has ``field``."""
        for number in range(len(self.manifests)):
            if self._locate(number, field) is not None:
                return
        self.manifests[0].locate(field)

    def facts(self, field: str, samples: NDArray[np.int64]) -> NDArray[Any]:
        """Index facts of ``field`` (see `index_files.FACTS`) of the numbered samples, structured
        [n].

        ``offset`` is 0 where a sample lacks the field.
        """
        if len(self.manifests) == 1:
            located = self._locate(0, field)
            return np.zeros(len(samples), FACTS) if located is None else located.facts(samples)
        facts = np.zeros(len(samples), FACTS)
        owners = np.searchsorted(self._ends, samples, side="right")
        for number in np.unique(owners).tolist():
            located = self._locate(number, field)
            if located is not None:
                mine = owners == number
                facts[mine] = located.facts(samples[mine] - self._start(number))
        return facts

    def read(self, field: str, sample: int) -> bytes:
        """Bytes of one field, checked against the index. Raises `SampleFault` with the reason."""
        number, row = self._find(sample)
        located = self._locate(number, field)
        if located is None:
            raise SampleFault("the sample has no such field")
        offset, size, crc = located.bytes_of(row)
        manifest = self.manifests[number]
        place = manifest.place(manifest.shard_of(row))
        if isinstance(place.base, str):
            return self._remote.read(sample, field, place, offset, size, crc)
        return self._local.read(place, offset, size, crc)

    def text(self, field: str, sample: int) -> str | None:
        """Text of a text, cls or json.<path> field; None where the JSON has no such path."""
        return _decoded(self.read(field, sample), field, self._path(self._find(sample)[0], field))

    def texts(self, field: str, samples: NDArray[np.int64]) -> Iterator[str | None]:
        """`text` of ascending neighbours, None also where a sample lacks the field or it is no
        text; read from the index where that keeps the texts (`kept_texts`).

        Raises `ShardFault` if a shard cannot be read.
        """
        owners = np.searchsorted(self._ends, samples, side="right")
        for number in np.unique(owners).tolist():
            mine = samples[owners == number]
            kept = self._kept(number, field)
            if kept is None:
                yield from (self._text_or_none(field, sample) for sample in mine.tolist())
            else:
                yield from (
                    None if raw is None else _decoded_or_none(raw, field, self._path(number, field))
                    for raw in kept.read(mine - self._start(number))
                )

    def keeps_texts(self, field: str) -> bool:
        """Whether the texts of ``field`` are read from the index, or from local shards."""
        return all(
            isinstance(manifest.base, Path) or self._kept(number, field) is not None
            for number, manifest in enumerate(self.manifests)
            if manifest.has(field)
        )

    def _kept(self, number: int, field: str) -> KeptTexts | None:
        if (number, field) not in self._kept_texts:
            self._kept_texts[number, field] = open_texts(self.manifests[number], field)
        return self._kept_texts[number, field]

    def _text_or_none(self, field: str, sample: int) -> str | None:
        number, row = self._find(sample)
        located = self._locate(number, field)
        if located is None or not located.bytes_of(row)[0]:
            return None
        return _decoded_or_none(self.read(field, sample), field, self._path(number, field))

    def where(self, sample: int, field: str) -> dict[str, Any]:
        """Where a field lies, for the quarantine log."""
        return {
            "key": self.key(sample),
            "shard": self.shard(sample),
            "offset": int(self.facts(field, np.array([sample]))["offset"][0]),
        }

    def _find(self, sample: int) -> tuple[int, int]:
        number = bisect_right(self._ends, sample)
        return number, sample - self._start(number)

    def _start(self, number: int) -> int:
        return self._ends[number - 1] if number else 0

    def _path(self, number: int, field: str) -> str | None:
        """Where in a JSON document the field is; None if it is none."""
        if (number, field) not in self._paths:
            is_json = field.startswith("json.")
            path = self.manifests[number].json_path(field) if is_json else None
            self._paths[number, field] = path
        return self._paths[number, field]

    def _locate(self, number: int, field: str) -> FieldLocator | None:
        """The field in one manifest; None where no sample of that folder has it."""
        if (number, field) not in self._located:
            manifest = self.manifests[number]
            self._located[number, field] = manifest.locate(field) if manifest.has(field) else None
        return self._located[number, field]

    def __getstate__(self) -> dict[str, Any]:
        # Located again in the worker: pickling a memory-mapped column would copy it.
        return self.__dict__ | {"_located": {}, "_kept_texts": {}}


def _decoded(raw: bytes, field: str, path: str | None) -> str | None:
    """Text of a text or cls field, or what a JSON has at ``path``. Raises `SampleFault` with the
    reason.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise SampleFault(f"{field}: not UTF-8") from None
    if path is None:
        return text.removeprefix("\ufeff").strip()
    value = json_text(text, path)
    if (
        value is not None
        and not value.isascii()
        and any("\ud800" <= letter <= "\udfff" for letter in value)
    ):
        raise SampleFault(f"{field}: holds half of a surrogate pair, which no UTF-8 text can")
    return value


def _decoded_or_none(raw: bytes, field: str, path: str | None) -> str | None:
    try:
        return _decoded(raw, field, path)
    except SampleFault:
        return None  # not a text, or a JSON without the path: a property of the indexed bytes
