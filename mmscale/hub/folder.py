"""Where a release lies: a local folder, or a repository of the Hugging Face Hub, fetched once into
its cache.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from mmscale.errors import UserError

HUB_KEYWORDS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_FILES = ["*.json", "*.safetensors", "model.sig", "README.md"]


def release_folder(name: str | PathLike[str], keywords: dict[str, Any]) -> Path:
    """The folder ``name``, or the snapshot of the repository ``name``; takes its settings out of
    ``keywords``.

    Raises:
        UserError: there is neither, or it cannot be fetched.
    """
    settings = {key: keywords.pop(key) for key in HUB_KEYWORDS if key in keywords}
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=_FILES, **settings))
    # The library has a kind for every failure of network, name and permission.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name}: no local folder, and cannot be fetched ({reason}); check the name"
        ) from None
