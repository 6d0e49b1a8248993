"""JSON of samples, parsed to a depth that does not depend on the caller's stack."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from mmscale.errors import SampleFault

MAX_DEPTH = 256
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


def parse_json(document: str) -> Any:
    """The value of ``document``. NaN and Infinity, which are no JSON though Python writes them, are
    null; a byte-order mark is passed over.

    Raises `SampleFault` if it is not JSON, or nested deeper than `MAX_DEPTH`.
    """
    # Python's parser has no limit but that of the interpreter's stack, of which every caller has
    # used another part.
    if document.count("[") + document.count("{") > MAX_DEPTH and _depth(document) > MAX_DEPTH:
        raise SampleFault(f"JSON nested too deep; {MAX_DEPTH} levels are read")
    try:
        return json.loads(document.removeprefix("\ufeff"), parse_constant=lambda _: None)
    except ValueError as error:
        raise SampleFault(f"not valid JSON: {str(error)[:120]}") from None


def json_text(document: str, path: str) -> str | None:
    """The scalar at a dotted ``path`` as text, of the whole document where that is empty; None if
    there is none.

    Raises `SampleFault` as `parse_json`.
    """
    value = parse_json(document)
    for part in path.split(".") if path else ():
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value.removeprefix("\ufeff")
    return str(value) if isinstance(value, int | float) else None


def _depth(document: str) -> int:
    """The deepest nesting of a valid document; any number for others."""
    plain = np.frombuffer(_STRING.sub("", document).encode("utf-8", "replace"), np.uint8)
    opened = (plain == ord("[")) | (plain == ord("{"))
    closed = (plain == ord("]")) | (plain == ord("}"))
    return int(np.cumsum(opened.astype(np.int64) - closed).max(initial=0))
