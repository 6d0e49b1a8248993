"""What a config calls a field, over the fields that a folder of shards has.

A field is what follows the key in a member's name, in lower case: ``jpg``, ``left.png``,
``info.json``. A config says ``image``, ``image.left``, ``image.jpg``, ``json.info.label``.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmscale.data.index.probe import ENDINGS, Kind, kind_of
from mmscale.errors import UserError


def split_reference(reference: str) -> tuple[Kind, str]:
    """(kind, name or JSON path) of a field reference; the name is empty for a plain one.

    Raises `UserError` if it is none.
    """
    kinds: tuple[Kind, ...] = ("image", "audio", "text", "cls", "json")
    for kind in kinds:
        if reference == kind and kind != "json":
            return kind, ""
        if reference.startswith(f"{kind}.") and len(reference) > len(kind) + 1:
            return kind, reference[len(kind) + 1 :]
    raise UserError(
        f"unknown field {reference!r}; use image, audio, text, cls, json.<path>, or image.<name> "
        "for <name>.png"
    )


def fields_meant(reference: str, fields: Sequence[str]) -> list[str]:
    """The fields that a reference means, the first of them that a sample has; empty if there are
    none.

    - ``image`` (``audio``): the plain endings in the order of `probe.ENDINGS`, then longer fields
      such as ``0.png``, sorted; ``text``, ``cls``: the plain endings alone;
    - ``image.left``: ``left.png``, ``left.jpg`` and so on;
    - ``image.jpg``, ``image.left.jpg``: the field of exactly that name, where no other is meant;
    - ``json.<path>``: see `json_place`.

    Names are found in upper and lower case. Raises `UserError` as `split_reference` does.
    """
    kind, name = split_reference(reference)
    if kind == "json":
        field, _ = json_place(name, fields)
        return [field] if field in fields else []
    if name:
        name = name.lower()
        named = [field for ending in ENDINGS[kind] if (field := f"{name}.{ending}") in fields]
        exact = [name] if name in fields and kind_of(name) == kind else []
        return named or exact
    plain = [field for field in ENDINGS[kind] if field in fields]
    if kind not in ("image", "audio"):
        return plain
    return plain + [field for field in fields if kind_of(field) == kind and field not in plain]


def json_place(path: str, fields: Sequence[str]) -> tuple[str, str]:
    """(field, path in its JSON) that ``json.<path>`` means.

    Where samples have ``info.json``, ``json.info.label`` is ``label`` in it; all other paths are of
    the plain ``.json``. An empty path is the whole document: ``json.info``, where there is no plain
    one.
    """
    parts = path.split(".")
    for number in range(len(parts) - ("json" in fields), 0, -1):
        field = f"{'.'.join(parts[:number]).lower()}.json"
        if field in fields:
            return field, ".".join(parts[number:])
    return "json", path


def no_such_field(reference: str, fields: Sequence[str]) -> str:
    """What to say of a reference that means none of ``fields``: what there is, and how it is
    named.
    """
    kind = split_reference(reference)[0]
    own = [field for field in fields if kind_of(field) == kind]
    names = {field: _name(kind, field) for field in own}
    named = f" (in a config: {', '.join(dict.fromkeys(names.values()))})" if own else ""
    return f"no sample has field {reference!r}; fields there are: {', '.join(fields)}{named}"


def _name(kind: Kind, field: str) -> str:
    stem, dot, ending = field.rpartition(".")
    if kind == "json":
        return f"json.{stem}{dot}<path>"
    return f"{kind}.{stem if dot else ending}"
