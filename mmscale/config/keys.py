"""What every config object is made of: documented keys, and references to a sample's fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from mmscale.errors import UserError

_HEAD = re.compile(r"[\w -]+")  # letters of any script
TEXT_FIELDS = ("text", "cls")


MEDIA_FIELDS = ("image", "audio")
# What `match` says where samples of equal keys belong together, whatever shard they are in.
BY_KEY = "key"


def is_media(field: str) -> bool:
    """Whether a field reference is a picture or a clip, such as ``image`` or ``image.left``."""
    return field.partition(".")[0] in MEDIA_FIELDS


def media_kind(field: str) -> str:
    """``image`` or ``audio``: what a field that `is_media` holds. No other is taken for one."""
    kind = field.partition(".")[0]
    assert kind in MEDIA_FIELDS, f"{field}: neither a picture nor a clip"
    return kind


def check_field(where: str, name: str) -> None:
    """A field reference is image, audio, text, cls, json.<path>, or image.<name> and so on."""
    kind, dot, rest = name.partition(".")
    if (kind in (*TEXT_FIELDS, *MEDIA_FIELDS) and (rest or not dot)) or (kind == "json" and rest):
        return
    raise UserError(
        f"{where}: unknown field {name!r}; use image, audio, text, cls, json.<path>, or "
        "image.<name> for <name>.png"
    )


def check_head(where: str, name: str) -> None:
    """A linear head's name is part of its parameters' names."""
    if not _HEAD.fullmatch(name):
        raise UserError(
            f"{where}: {name[:60]!r} is no name of a head; use letters, digits, _ and -"
        )


def key(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] | Callable[[], tuple[str, ...]] = (),
    low: float | None = None,
    high: float | None = None,
) -> Any:
    """A documented config key. ``choices``, ``low`` and ``high`` (inclusive) are checked when a
    file is read. Choices that a plug-in may add to are a function, such as `Registry.names`.
    """
    metadata = {"doc": doc, "choices": choices, "low": low, "high": high}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def choices_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """The choices of a key by its field's metadata; empty: any value."""
    choices = metadata["choices"]
    names: tuple[str, ...] = choices() if callable(choices) else choices
    return names
