"""Reading a run's config: YAML with ``base`` files, ``key=value`` overrides, strict names and
types.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from pathlib import Path
from typing import Any

from mmscale.config import Config, MediaConfig, ModelConfig
from mmscale.config.keys import choices_of
from mmscale.config.media import check_media
from mmscale.config.model import check_model
from mmscale.errors import UserError
from mmscale.plugins import check_named, import_plugins, listed_plugins
from mmscale.strict_yaml import read_yaml, write_yaml

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MAX_BASES = 16
_LARGEST = (1 << 63) - 1


def load_config(
    path: str | Path, overrides: typing.Sequence[str] = (), plugins: typing.Sequence[str] = ()
) -> Config:
    """Read ``path``, apply ``overrides`` such as ``train.steps=200``, check everything.

    Any mapping may hold ``base: other.yaml`` (relative to the file it stands in), which is read
    first and then overlaid. ``${NAME:-default}`` in a string is replaced from the environment.

    The file is the caller's own word: plug-ins that it names are imported, and ``plugins``, which
    are added to its ``plugins``. Files of others are read by `load_stored_config`.

    Raises:
        UserError: unreadable file, unknown key, wrong type, a plug-in that cannot be used, or a
            rule of `Config.check` broken; the message names the file or key and the remedy.
    """
    tree = _read(Path(path), depth=0)
    override_tree(tree, str(path), overrides, plugins)
    return config_from_tree(tree, str(path))


def load_stored_config(path: Path) -> Config:
    """The config that lies in a run's folder, whoever wrote it; imports nothing.

    Raises:
        UserError: as `load_config`, or it names a plug-in that the caller has not named.
    """
    return config_from_tree(_read(path, depth=0), str(path))


def load_model_config(
    path: str | Path, overrides: typing.Sequence[str] = (), plugins: typing.Sequence[str] = ()
) -> tuple[ModelConfig, MediaConfig]:
    """Model and media of a training config, or of a file such as configs/model/base.yaml.

    Raises:
        UserError: as `load_config`.
    """
    tree = _read(Path(path), depth=0)
    plugins = [*listed_plugins(tree, str(path)), *plugins]
    alone = set(tree) - {"plugins"} <= {item.name for item in dataclasses.fields(ModelConfig)}
    if "model" not in tree and alone:
        tree = {"model": {name: tree[name] for name in tree if name != "plugins"}}
    override_tree(tree, str(path), overrides, plugins)
    source = str(path)
    model = _build(ModelConfig, tree.get("model", {}), "model", source)
    media = _build(MediaConfig, tree.get("media", {}), "media", source)
    try:
        check_model(model)
        check_media(media)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return model, media


def config_from_tree(tree: dict[str, Any], source: str, rules: bool = True) -> Config:
    """Build and check a `Config` from plain dictionaries; ``source`` names the file in messages.

    Without ``rules`` between keys, only names, types and bounds are checked. Plug-ins that it names
    must have been imported by the caller's word (`mmscale.plugins`).
    """
    check_named(tree, source)  # before the choices of keys, to which plug-ins add
    config = _build(Config, tree, "", source)
    if not rules:
        return config
    try:
        config.check()
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return config


def to_tree(config: Any) -> dict[str, Any]:
    """The config as plain dictionaries, every key present."""
    return dataclasses.asdict(config)


def dump_config(config: Config) -> str:
    """The resolved config as YAML; `load_config` reads it back unchanged."""
    return write_yaml(to_tree(config))


def key_type(name: str) -> Any:
    """The annotated type of the dotted key ``name``; None if there is none of that name.

    A part below a mapping such as ``data.sets`` may be any name: ``data.sets.digits.weight``. (A
    name with a dot in it cannot be reached.)
    """
    hint: Any = Config
    for part in name.split("."):
        if dataclasses.is_dataclass(hint):
            hint = typing.get_type_hints(hint).get(part)
        elif typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[1]
        else:
            return None
    return hint


def set_key(tree: dict[str, Any], name: str, value: Any) -> None:
    """Put ``value`` at the dotted key ``name`` of a config's tree. Raises `UserError` if a parent
    is no group.
    """
    *parents, last = name.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"{name}: {parent} is not a group of keys")
        tree = child
    tree[last] = value


def describe_keys() -> list[tuple[str, str, str]]:
    """(dotted key, default, documentation) of every config key, in order."""
    rows: list[tuple[str, str, str]] = []

    def visit(cls: type, prefix: str) -> None:
        hints, defaults = typing.get_type_hints(cls), cls()
        for item in dataclasses.fields(cls):
            hint, name = hints[item.name], prefix + item.name
            inner = typing.get_args(hint)
            if dataclasses.is_dataclass(hint):
                visit(typing.cast(type, hint), name + ".")
                continue
            doc = item.metadata["doc"]
            choices = choices_of(item.metadata)
            if choices:
                doc += f" One of: {', '.join(choice or '(empty)' for choice in choices)}."
            rows.append((name, str(getattr(defaults, item.name)), doc))
            if inner and dataclasses.is_dataclass(inner[-1]):
                visit(
                    typing.cast(type, inner[-1]), name + (".<name>." if len(inner) == 2 else "[].")
                )

    visit(Config, "")
    return rows


def override_tree(
    tree: dict[str, Any],
    source: str,
    overrides: typing.Sequence[str],
    plugins: typing.Sequence[str],
) -> None:
    """Overrides and plug-ins, to the tree of the caller's own file; imports the plug-ins."""
    for override in overrides:
        set_key(tree, *parse_override(override))
    names = list(dict.fromkeys([*listed_plugins(tree, source), *plugins]))
    import_plugins(names)
    if names:
        tree["plugins"] = names


def _read(path: Path, depth: int) -> dict[str, Any]:
    if depth > _MAX_BASES:
        raise UserError(
            f"{path}: more than {_MAX_BASES} levels of 'base'; do two files name each other?"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a .yaml file") from None
    try:
        tree = read_yaml(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML ({error}); correct the file") from None
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: a config is a mapping of keys; this file holds a {type(tree).__name__}"
        )
    return _resolve(tree, path, depth)


def _resolve(tree: dict[str, Any], path: Path, depth: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    base = tree.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: base: name one file, got {base!r}")
        out = _read(path.parent / _expand(base), depth + 1)
    for name, value in tree.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: key {name!r} is not a string; put it in quotes")
        if isinstance(value, dict):
            value = overlay(out.get(name), _resolve(value, path, depth))
        elif isinstance(value, list):
            value = [_resolve(v, path, depth) if isinstance(v, dict) else _expand(v) for v in value]
        else:
            value = _expand(value)
        out[name] = value
    return out


def overlay(under: Any, over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``under``, group by group; neither changes."""
    if not isinstance(under, dict):
        return over
    out = dict(under)
    for name, value in over.items():
        out[name] = overlay(out.get(name), value) if isinstance(value, dict) else value
    return out


def _expand(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return _VARIABLE.sub(lambda match: os.environ.get(match[1], match[2] or ""), value)


def parse_override(override: str) -> tuple[str, Any]:
    """``"train.steps=200"`` → ("train.steps", 200). Raises `UserError`."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"{override!r}: an override is written key=value, such as train.steps=200")
    try:
        return name, read_yaml(text) if text else ""
    except ValueError as error:
        raise UserError(f"{name}: {text[:100]!r} is not a valid value ({error})") from None


def _build(hint: Any, value: Any, where: str, source: str) -> Any:
    """Convert ``value`` to the annotated type ``hint``, naming the dotted key in every
    complaint.
    """
    if dataclasses.is_dataclass(hint):
        return _build_object(typing.cast(type, hint), value, where, source)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        items = value if isinstance(value, list) else [value]
        return [_build(inner[0], item, f"{where}[{i}]", source) for i, item in enumerate(items)]
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{source}: {where}: expected a mapping of names, got {value!r}")
        return {
            str(name): _build(inner[1], item, f"{where}.{name}", source)
            for name, item in value.items()
        }
    if hint is typing.Any:
        return value
    assert not isinstance(hint, types.UnionType), "config keys have one type each"
    if hint is float and isinstance(value, str) and _FLOAT.fullmatch(value):
        value = float(value)  # in quotes, or from the environment
    if isinstance(value, int) and not -_LARGEST <= value <= _LARGEST:
        raise UserError(
            f"{source}: {where}: {str(value)[:20]}… is out of range; numbers of 64 bits are taken"
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if type(value) is not hint:
        raise UserError(f"{source}: {where}: expected {hint.__name__}, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{source}: {where}: {value} is no number to train with; give a finite one")
    return value


def _build_object(cls: type, value: Any, where: str, source: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{source}: {where}: expected a group of keys, got {value!r}")
    hints = typing.get_type_hints(cls)
    known = {item.name: item for item in dataclasses.fields(cls)}
    made: dict[str, Any] = {}
    for name, item in value.items():
        place = f"{where}.{name}" if where else name
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            raise UserError(f"{source}: unknown key {place!r}; {remedy}")
        made[name] = _build(hints[name], item, place, source)
        _check_bounds(known[name].metadata, made[name], place, source)
    return cls(**made)


def _check_bounds(metadata: typing.Mapping[str, Any], value: Any, where: str, source: str) -> None:
    choices, low, high = choices_of(metadata), metadata["low"], metadata["high"]
    for item in value if isinstance(value, list) else [value]:
        if choices and item not in choices:
            listed = ", ".join(repr(choice) for choice in choices)
            more = "; a plug-in's needs --plugin" if callable(metadata["choices"]) else ""
            raise UserError(f"{source}: {where}: {item!r} is not one of {listed}{more}")
    if low is not None and not value >= low:
        raise UserError(f"{source}: {where}: {value} is below the least value {low:g}")
    if high is not None and not value <= high:
        raise UserError(f"{source}: {where}: {value} is above the greatest value {high:g}")
