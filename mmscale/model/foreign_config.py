"""Configs for `transformers` that a stranger wrote: what makes the library fetch something is left
out of them.
"""

from __future__ import annotations

import re
from typing import Any

# An attention "owner/repository" is code of the Hub, fetched and run. Which one computes a model is
# no fact of it.
_FETCHES = re.compile(r"_.*|.*_implementation|.*backbone|auto_map|quantization_config")


def drop_fetches(tree: dict[str, Any]) -> dict[str, Any]:
    """``tree`` without the keys that name code, kernels or further models; what lies deeper is
    kept.
    """
    return {name: value for name, value in tree.items() if not _FETCHES.fullmatch(name)}


def drop_all_fetches(value: Any) -> Any:
    """`drop_fetches` at every depth, for the config of a tower."""
    if isinstance(value, dict):
        return {name: drop_all_fetches(inner) for name, inner in drop_fetches(value).items()}
    return [drop_all_fetches(inner) for inner in value] if isinstance(value, list) else value
