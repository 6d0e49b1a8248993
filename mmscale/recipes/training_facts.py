"""What a recipe looks at before it chooses: counts and sizes of the training samples alone.

Everything is read from the index, nothing is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmscale.data.index.dataset import Dataset
from mmscale.data.index.json_field import parse_json
from mmscale.errors import SampleFault, UserError

# Looked at, spread evenly over a larger set.
_MOST = 20_000
# JSON documents that are read for the names in them.
_DOCUMENTS = 200


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """Of the samples of one set.

    Attributes:
        samples: how many.
        width, height: medians, pixels; 0 without pictures.
        seconds: the longest clip; 0 without sound. ``rate``: the median sample rate, Hz.
        characters: the mean of a text; 0 without texts. ``text_bytes``: of all of them.
        json: names that scalars have in the samples' JSON, such as ``label``.
        cls: whether samples have a class number.
    """

    samples: int
    width: float = 0.0
    height: float = 0.0
    seconds: float = 0.0
    rate: int = 0
    characters: float = 0.0
    text_bytes: int = 0
    json: tuple[str, ...] = ()
    cls: bool = False


def read_facts(dataset: Dataset, text: str = "text") -> TrainingFacts:
    """The facts of a training set; ``text``: the field whose texts count.

    Raises `UserError` if it has no sample.
    """
    samples = len(dataset)
    if not samples:
        raise UserError(f"{dataset.manifests[0].root}: holds no samples")
    looked_at = np.unique(np.linspace(0, samples - 1, min(samples, _MOST)).astype(np.int64))
    image, audio = (_present(dataset, field, looked_at) for field in ("image", "audio"))
    characters, text_bytes = _text_sizes(dataset, text, looked_at)
    names = _json_names(dataset, looked_at)
    return TrainingFacts(
        samples=samples,
        width=float(np.median(image["a"])) if len(image) else 0.0,
        height=float(np.median(image["b"])) if len(image) else 0.0,
        seconds=float((audio["a"] / np.maximum(audio["b"], 1)).max()) if len(audio) else 0.0,
        rate=int(np.median(audio["b"])) if len(audio) else 0,
        characters=characters,
        text_bytes=int(text_bytes * samples),
        json=tuple(sorted(names)),
        cls=bool(len(_present(dataset, "cls", looked_at))),
    )


def _present(dataset: Dataset, field: str, samples: NDArray[np.int64]) -> NDArray[np.void]:
    """The facts of the samples that have the field."""
    facts = dataset.facts(field, samples)
    return facts[facts["offset"] > 0]


def _text_sizes(dataset: Dataset, field: str, samples: NDArray[np.int64]) -> tuple[float, float]:
    """Mean characters and bytes of a text; of one in the JSON, from some documents."""
    facts = _present(dataset, field, samples)
    if not len(facts):
        return 0.0, 0.0
    if not field.startswith("json."):
        return float(facts["a"].mean()), float(facts["size"].mean())
    some = samples[np.unique(np.linspace(0, len(samples) - 1, _DOCUMENTS).astype(np.int64))]
    texts = [text for text in dataset.texts(field, some) if text]
    if not texts:
        return 0.0, 0.0
    return (
        sum(map(len, texts)) / len(texts),
        sum(len(text.encode()) for text in texts) / len(texts),
    )


def _json_names(dataset: Dataset, samples: NDArray[np.int64]) -> set[str]:
    names: set[str] = set()
    facts = dataset.facts("json.label", samples)
    for sample in samples[facts["offset"] > 0][:_DOCUMENTS].tolist():
        try:
            names.update(_scalars(parse_json(dataset.read("json.label", sample).decode())))
        except (SampleFault, UnicodeDecodeError):
            continue  # training tells it
    return names


def _scalars(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (
            str(name) for name, inner in value.items() if isinstance(inner, str | int | float)
        )
