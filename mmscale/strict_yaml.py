"""YAML as configs are written in it: plain values, a key once, and a date is the text that it looks
like.

What a plain word is: YAML 1.1 as most programs read it, so that ``yes``, ``off`` and ``1_000`` stay
what they were, but for three traps. ``1e-3`` is a number as in YAML 1.2; ``10:12`` is text and not
a number of base 60; dates are text.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

_MAX_VALUES = 100_000
_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"

# (kind of value, pattern, first characters)
_PLAIN = (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
     "yYnNtTfFoO"),
    ("float", r"[-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
     r"|[-+]?\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     "-+0123456789."),
    ("int", r"[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+",
     "-+0123456789"),
    ("merge", r"<<", "<"),
    ("null", r"~|null|Null|NULL|", "~nN"),
)  # fmt: skip
# What others take for something else than text; it is quoted in what we write.
_QUOTED = (
    ("timestamp", r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
     r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt]|[ \t]+)[0-9:]+.*",
     "0123456789"),
    ("int", r"[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?", "-+0123456789"),
    ("value", r"=", "="),
)  # fmt: skip

_Table = dict[str, list[tuple[str, re.Pattern[str]]]]


def _table(*rules: tuple[str, str, str]) -> _Table:
    table: _Table = {"": [(_TAG + "null", re.compile(r"\Z"))]}
    for kind, pattern, first in rules:
        for character in first:
            table.setdefault(character, []).append((_TAG + kind, re.compile(f"({pattern})\\Z")))
    return table


class _Resolver(VersionedResolver):
    """Which kind of value a plain word is."""

    versioned_resolver = _table(*_PLAIN)
    processing_version = (1, 2)


class _QuotingResolver(_Resolver):
    """The same, and what other readers have rules for."""

    versioned_resolver = _table(*_PLAIN, *_QUOTED)


class _Composer(Composer):
    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        """Refuses a key that is there twice, also beside a merge, where the library does not."""
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and str(key.tag) != _MERGE:
                if key.value in keys:
                    problem = f"the key {key.value!r} is there twice"
                    raise ComposerError(None, None, problem, key.start_mark)
                keys.add(key.value)
        return node


class _Constructor(SafeConstructor):
    def flatten_mapping(self, node: Any) -> None:
        """Bounds merges of merges, which may make endlessly much of little text."""
        super().flatten_mapping(node)
        if len(node.value) > _MAX_VALUES:
            raise ValueError(f"more than {_MAX_VALUES:,} merged values")

    def construct_yaml_int(self, node: Any) -> int:
        """010 is 8, as in YAML 1.1."""
        text = self.construct_scalar(node)
        digits = text.replace("_", "").lstrip("+-")
        if len(digits) > 1 and digits[0] == "0" and digits.isdecimal():
            return int(digits, 8) * (-1 if text[0] == "-" else 1)
        return int(super().construct_yaml_int(node))


_Constructor.add_constructor(_TAG + "int", _Constructor.construct_yaml_int)


class _Representer(SafeRepresenter):
    def represent_str(self, data: str) -> ScalarNode:
        """Line breaks of Unicode are escaped; in other styles the library folds them."""
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar(_TAG + "str", data, style=style)

    def represent_float(self, data: float) -> ScalarNode:
        """1.0e-05, which readers of YAML 1.1 take for a number too; they do not take 1e-05."""
        node = super().represent_float(data)
        if "e" in node.value and "." not in node.value:
            node.value = node.value.replace("e", ".0e", 1)
        return node


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(float, _Representer.represent_float)


def read_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        ValueError: the text is no such document; the message says where and why, on one line.
    """
    yaml = YAML(typ="safe", pure=True)  # makes no objects of classes
    yaml.Resolver, yaml.Composer, yaml.Constructor = _Resolver, _Composer, _Constructor
    try:
        value = yaml.load(text)
        _check_size(value)
        return value
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        reason = str(getattr(error, "problem", None) or error)
    except RecursionError:
        place, reason = "", "nested too deep"
    except Exception as error:  # a number of thousands of digits, a tag on what it does not fit
        place, reason = "", str(error)
    raise ValueError(place + " ".join(reason.split())[:200])


def write_yaml(tree: Mapping[str, Any]) -> str:
    """``tree`` as a YAML document, one line per key, in the order of its keys.

    Read back by `read_yaml` it is the same, and by readers of YAML 1.1 and 1.2 too.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Representer = _QuotingResolver, _Representer
    yaml.default_flow_style = False
    yaml.width = sys.maxsize  # text is not broken into lines
    # The library types it as its default.
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump(tree, stream)
    return stream.getvalue()


def _check_size(value: Any) -> None:
    """Raise `ValueError` if aliases make much, or endlessly much, of little text."""
    left, count = [value], 0
    while left:
        item = left.pop()
        count += 1
        if count > _MAX_VALUES:
            raise ValueError(
                f"more than {_MAX_VALUES:,} values, aliases counted as often as they are used"
            )
        if isinstance(item, dict | list):
            left.extend(item.values() if isinstance(item, dict) else item)
