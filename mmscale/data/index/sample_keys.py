"""Which dot of a member's name ends the key of its sample.

A name is ``folder/base``. What stands before the dot that ends the key is the key, with the folder;
what follows is the field, in lower case. The rule is one of:

- ``first``: the first dot of the base name, as webdataset does;
- ``last``: the last one, so that every field is a plain ending;
- a number N: the key has N dots (fewer, where the base name has no more than N);
- ``auto``: as `split_auto` and `is_one_sample` say: the first dot, but where that would make one
  sample of pictures or clips that are plainly several, such as ``22.05.png`` and ``22.06.png``.

All of them are functions of the names in a shard alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmscale.data.index.probe import kind_of
from mmscale.errors import UserError

AUTO, FIRST, LAST = "auto", "first", "last"

# Up to the first dot of the base name, and the rest. A base name that starts with a dot is a hidden
# file and has no key.
_SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")
# webdataset keeps whole-shard metadata in members and top-level folders named like this.
_SHARD_METADATA = re.compile(r"__[^/]*__(/|$)")
# What may be the name of a field, and not the rest of a picture's own name.
_FIELD_PART = re.compile(r"[a-z_-][a-z0-9_-]{0,63}")
_NUMBER = re.compile(r"[0-9]{1,3}")


def check_key_dots(text: str) -> str:
    """The rule that ``text`` names. Raises `UserError` if it is none."""
    if text in (AUTO, FIRST, LAST):
        return text
    if not _NUMBER.fullmatch(text):
        raise UserError(
            f"--key-dots {text}: unknown; write auto, first, last, or how many dots a key has"
        )
    return str(int(text)) if int(text) else FIRST


def is_metadata(name: str) -> bool:
    """Whether the member is webdataset's ``__name__`` metadata of a whole shard."""
    return _SHARD_METADATA.match(name) is not None


def split_name(name: str, key_dots: str = FIRST) -> tuple[str, str] | None:
    """(key, field) of a member by a rule; None if it belongs to no sample.

    ``auto`` gives the longest key, `split_auto`; members whose keys differ may be one sample.
    """
    match = _SAMPLE.fullmatch(name)
    if match is None or is_metadata(name):
        return None
    key, rest = match[1], match[2]
    if key_dots != FIRST and "." in rest:
        parts = rest.split(".")
        if key_dots == AUTO:
            taken = _name_parts(parts[:-1])
        else:
            most = len(parts) - 1
            taken = most if key_dots == LAST else min(int(key_dots), most)
        key, rest = ".".join([key, *parts[:taken]]), ".".join(parts[taken:])
        if not rest:
            return None  # the name ends in a dot
    return key, rest.lower()


def webdataset_key(key: str) -> str:
    """The key that webdataset's rule gives to a member that has ``key`` by any rule."""
    if "." not in key:
        return key
    folder, slash, base = key.rpartition("/")
    return folder + slash + base.partition(".")[0]


def is_one_sample(fields: Sequence[str], split: Sequence[tuple[str, str]], key: str) -> bool:
    """``auto``: whether members of one webdataset ``key`` are one sample.

    They are, unless all of these hold:

    - the part after the first dot reads as the rest of a name wherever there is more than an
      ending: it begins with a digit or has characters that no field has;
    - these parts do not count 0, 1, 2, … as `mmscale data pack` numbers a sample's pictures;
    - with them in the key, every sample has a picture or clip of its own, and no text, class or
      JSON stands under the bare key, which would belong to all.

    Args:
        fields: of the members, by webdataset's rule.
        split: (key, field) of the members, by `split_name` with ``auto``.
        key: that all have by webdataset's rule.
    """
    firsts = {field.partition(".")[0] for field in fields if "." in field}
    if not firsts or any(not _is_name_part(first) for first in firsts):
        return True
    if firsts == {str(number) for number in range(len(firsts))}:
        return True
    media = {own for own, field in split if kind_of(field) in ("image", "audio")}
    return any(
        own not in media or (own == key and kind_of(field) not in ("image", "audio"))
        for own, field in split
    )


def _name_parts(parts: Sequence[str]) -> int:
    """How many of the leading ``parts`` read as the rest of a name."""
    for number, part in enumerate(parts):
        if not _is_name_part(part.lower()):
            return number
    return len(parts)


def _is_name_part(part: str) -> bool:
    return _FIELD_PART.fullmatch(part) is None
