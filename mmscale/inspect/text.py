"""What one text is measured for: its script, and hashes of it as it stands and without its
dress.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any

from mmscale.errors import SampleFault

EXCERPT = 200
"""Characters of a text that are kept in the table."""
MAX_PATHS, MAX_DEPTH = 64, 6
"""Scalars of one JSON document that are looked at, and how deep they may lie."""

# A second script is reported from this share of the letters on; below, it is a loan word or name.
_MIXED = 0.2
# Zero width, and part of many emoji and scripts.
_JOINERS = "\u200d\u200c"
# First words of Unicode's character names, where they are not what people call the script.
_NAMES = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana", "KATAKANA-HIRAGANA": "Kana"}


def measure_text(text: str) -> dict[str, Any]:
    """Measures of one text, by column of the table."""
    return {
        "text": text[:EXCERPT],
        "text_script": script_of(text),
        "text_hash": _hash(text),
        "text_bare_hash": _hash(bare(text)),
        "text_replacements": text.count("\ufffd"),
    }


def script_of(text: str) -> str:
    """The script of most letters of ``text``, such as ``Latin``; of two that are both frequent,
    ``Han + Latin``.

    ``none`` for texts without letters. A script is no language: Latin may be English or Vietnamese.
    """
    counts = Counter(script for letter in text if (script := _letter_script(letter)) is not None)
    total = counts.total()
    if not total:
        return "none"
    # By count, then by name: the order of letters must not matter.
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    frequent = [script for script, count in ranked if count >= _MIXED * total]
    return " + ".join(sorted(frequent[:2])) if frequent else "many"


def bare(text: str) -> str:
    """``text`` without case, spaces, punctuation, and Unicode's compatibility forms.

    Of a text that has nothing else, such as ``?!``, its compatibility form.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(
        letter for letter in folded if letter.isalnum() or unicodedata.category(letter)[0] == "M"
    )
    return kept or folded


def printable(text: str) -> str:
    """``text`` with every invisible or unprintable character made visible as �, on one line."""
    return "".join(
        letter
        if letter in _JOINERS or unicodedata.category(letter)[0] != "C"
        else (" " if letter in "\n\r\t" else "\ufffd")
        for letter in text
    )


def scalars(document: bytes) -> dict[str, str]:
    """Dotted path → value, as text, of the scalars of a JSON document outside of lists; cut to
    `EXCERPT`.

    Raises `SampleFault` for bad JSON.
    """
    try:
        tree = json.loads(document)
    except (ValueError, RecursionError):
        raise SampleFault("json: not valid JSON") from None
    values: dict[str, str] = {}
    _collect(tree, (), values)
    return values


def _collect(tree: Any, path: tuple[str, ...], values: dict[str, str]) -> None:
    if isinstance(tree, dict) and len(path) < MAX_DEPTH:
        for name, value in tree.items():
            _collect(value, (*path, name), values)
    elif path and len(values) < MAX_PATHS:
        if isinstance(tree, bool):
            values[".".join(path)] = "true" if tree else "false"
        elif isinstance(tree, str | int | float):
            # A lone surrogate, which JSON can hold and UTF-8 cannot, becomes a question mark.
            values[".".join(path)] = str(tree)[:EXCERPT].encode("utf-8", "replace").decode()


@lru_cache(maxsize=1 << 16)
def _letter_script(letter: str) -> str | None:
    if not letter.isalpha():
        return None
    # "FULLWIDTH LATIN CAPITAL LETTER A" and the like are recognised by their plain form.
    printable = unicodedata.normalize("NFKC", letter)[0]
    first = unicodedata.name(printable, "OTHER").split()[0]
    return _NAMES.get(first, first.title())


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
