"""mmscale: one fusion transformer over images, text and speech, trained at any scale from plain tar
shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from mmscale.hub.autoload import install as _register_with_transformers
from mmscale.version import __version__ as __version__

if TYPE_CHECKING:
    from mmscale.data.index.manifest import Manifest
    from mmscale.release.trained_model import TrainedModel

_register_with_transformers()  # at once, or when it is imported


def load(
    folder: str | PathLike[str],
    device: str = "cpu",
    *,
    dtype: str = "auto",
    verify: bool = True,
    plugins: Sequence[str] = (),
) -> TrainedModel:
    """Open a release made by ``mmscale export``; see `mmscale.release.trained_model.load`.

    Raises `UserError` if the folder is none, or is damaged or changed.
    """
    from mmscale.release.trained_model import load as load_release  # torch is slow to import

    return load_release(folder, device, dtype=dtype, verify=verify, plugins=plugins)


def pack(
    source: str | PathLike[str] | Iterable[Mapping[str, Any]] | Mapping[str, Any],
    out: str | PathLike[str],
    *,
    image: str | None = None,
    audio: str | None = None,
    text: str | None = None,
    label: str | None = None,
    layout: str | None = None,
    root: str | PathLike[str] | None = None,
    delimiter: str | None = None,
    config: str | None = None,
    split: str | None = None,
    merge_splits: bool = False,
    strict: bool = False,
    shuffle_seed: int = 0,
    samples_per_shard: int = 1000,
    shuffle_gb: float = 8.0,
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Manifest]:
    """Write shards and an index to ``out``, as ``mmscale data pack`` does.

    ``source``: a folder or a table; an iterable of dicts; a `Dataset`, `IterableDataset` or
    `DatasetDict` of Hugging Face as it is; or a dict of such by split. ``image``, ``audio``,
    ``text`` and ``label`` name the columns that hold them, where these have other names. The
    manifests are given by split; ``""`` is ``out`` itself.

    See `mmscale.data.ingest.pack.pack`. Raises `UserError` naming the row and the remedy.
    """
    from pathlib import Path

    from mmscale.data.ingest.layout import LayoutOptions
    from mmscale.data.ingest.open_layout import SourceOptions
    from mmscale.data.ingest.pack import pack as pack_source

    columns = {"image": image, "audio": audio, "text": text, "label": label}
    reading = LayoutOptions(
        columns={role: column for role, column in columns.items() if column is not None},
        root=None if root is None else Path(root),
        delimiter=delimiter,
        config=config,
    )
    return pack_source(
        Path(source) if isinstance(source, str | PathLike) else source,
        Path(out),
        options=SourceOptions(
            layout=layout, split=split, merge_splits=merge_splits, reading=reading
        ),
        strict=strict,
        shuffle_seed=shuffle_seed,
        samples_per_shard=samples_per_shard,
        shuffle_gb=shuffle_gb,
        workers=workers,
        progress=progress,
    )
