"""YAML as configs are written in it: plain values, a key once, and a date is the text that it looks
like.
"""

from __future__ import annotations

from typing import Any

import yaml

_MAX_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader`, which lets a later key replace an earlier one in silence, and reads
    run.dir=2026-09-01 as a date."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Here, not where values are made: by then merged mappings (<<) have been written into those
        # that name them.
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    told = f"the key {key.value!r} is there twice"
                    raise yaml.composer.ComposerError(None, None, told, key.start_mark)
                keys.add(key.value)
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        ValueError: the text is no such document; the message tells where and why, on one line.
    """
    try:
        value = yaml.load(text, _Loader)  # a SafeLoader: it makes no objects of classes
        _check_size(value)
        return value
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        reason = str(getattr(error, "problem", None) or error)
    except RecursionError:
        place, reason = "", "nested too deep"
    except (
        ValueError,
        AttributeError,
    ) as error:  # a number of thousands of digits, a tag on what it does not fit
        place, reason = "", str(error)
    raise ValueError(place + " ".join(reason.split())[:200])


def _check_size(value: Any) -> None:
    """Raise `ValueError` if aliases make much, or endlessly much, of little text."""
    left, count = [value], 0
    while left:
        one = left.pop()
        count += 1
        if count > _MAX_VALUES:
            raise ValueError(
                f"more than {_MAX_VALUES:,} values, aliases counted as often as they are used"
            )
        if isinstance(one, dict | list):
            left.extend(one.values() if isinstance(one, dict) else one)
