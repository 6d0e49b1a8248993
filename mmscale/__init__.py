"""mmscale: one fusion transformer over images, text and speech, trained at any scale from plain tar
shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

from mmscale.hub.autoload import install as _register_with_transformers
from mmscale.version import __version__ as __version__

if TYPE_CHECKING:
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
