"""All samples of one data set, over any number of indexed shard folders, under one numbering."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.data.manifest import Located, Manifest, open_manifests
from mmscale.data.store import ByteStore
from mmscale.errors import SampleFault


class Corpus:
    """Samples 0..N-1 of a data set. Picklable; file handles are opened again in each worker."""

    def __init__(self, manifests: list[Manifest]) -> None:
        self.manifests = manifests
        self._ends = np.cumsum([len(manifest) for manifest in manifests])
        self._located: dict[tuple[int, str], Located] = {}
        self._store = ByteStore()

    @classmethod
    def open(cls, shards: list[str]) -> Corpus:
        """Open folders, files or brace patterns. Raises `UserError` naming what is missing."""
        return cls(open_manifests(shards))

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def digests(self) -> list[str]:
        """Identity of every manifest."""
        return [manifest.digest for manifest in self.manifests]

    def key(self, sample: int) -> str:
        """The sample's WebDataset key."""
        manifest, row = self._find(sample)
        return self.manifests[manifest].key(row)

    def facts(self, field: str) -> NDArray[Any]:
        """Index facts of ``field`` (see `manifest.FACTS`), structured [N]; offset 0 where a sample lacks it."""
        parts = [self._locate(number, field).facts for number in range(len(self.manifests))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def read(self, field: str, sample: int) -> bytes:
        """Bytes of one field, checked against the index. Raises `SampleFault` with the reason."""
        number, row = self._find(sample)
        manifest, facts = self.manifests[number], self._locate(number, field).facts[row]
        path = manifest.shard_path(int(manifest.shard_of[row]))
        return self._store.read(path, int(facts["offset"]), int(facts["size"]), int(facts["crc"]))

    def text(self, field: str, sample: int) -> str | None:
        """Text of a text, cls or json.<path> field; None where the JSON has no such path."""
        raw = self.read(field, sample)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise SampleFault(f"{field}: not UTF-8") from None
        if not field.startswith("json."):
            return text.strip()
        value = json_text(text, field.removeprefix("json."))
        if (
            value is not None
            and not value.isascii()
            and any("\ud800" <= letter <= "\udfff" for letter in value)
        ):
            raise SampleFault(f"{field}: holds half of a surrogate pair, which no UTF-8 text can")
        return value

    def where(self, sample: int, field: str) -> dict[str, Any]:
        """Where a field lies, for the quarantine log."""
        number, row = self._find(sample)
        manifest = self.manifests[number]
        return {
            "key": manifest.key(row),
            "shard": manifest.shards[int(manifest.shard_of[row])],
            "offset": int(self._locate(number, field).facts[row]["offset"]),
        }

    def _find(self, sample: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._ends, sample, side="right"))
        return number, sample - (int(self._ends[number - 1]) if number else 0)

    def _locate(self, number: int, field: str) -> Located:
        if (number, field) not in self._located:
            self._located[number, field] = self.manifests[number].locate(field)
        return self._located[number, field]


def json_text(document: str, path: str) -> str | None:
    """The scalar at a dotted ``path`` as text, None if there is none. Raises `SampleFault` for bad JSON."""
    try:
        value = json.loads(document)
    except (ValueError, RecursionError):
        raise SampleFault("json: not valid JSON") from None
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None
