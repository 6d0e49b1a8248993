"""Limits of media files, which `data pack` and `data index` take as options."""

from __future__ import annotations

import argparse
from typing import Any

from mmscale.errors import UserError

# Keys of `MediaConfig`.
_LIMITS = ("max_audio_s", "max_image_pixels", "max_file_bytes")


def add_media_limits(parser: argparse.ArgumentParser) -> None:
    """An option for each limit, with the default of the config."""
    from mmscale.config import MediaConfig

    for name in _LIMITS:
        key = MediaConfig.__dataclass_fields__[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(key.default),
            default=key.default,
            metavar="N",
            help=f"{key.metadata['doc'].rstrip('.')} (default: {key.default:,})",
        )


def media_limits(arguments: argparse.Namespace) -> Any:
    """`MediaConfig` with the limits given. Raises `UserError` if one is not above 0."""
    from mmscale.config import MediaConfig

    limits = {name: getattr(arguments, name) for name in _LIMITS}
    for name, value in limits.items():
        if not value > 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: a limit is above 0")
    return MediaConfig(**limits)
