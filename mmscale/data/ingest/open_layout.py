"""Which layout a source has, and which of its splits become which set."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from mmscale.data.account import Account
from mmscale.data.ingest.hub_cache import snapshot_in
from mmscale.data.ingest.layout import Layout, LayoutOptions, Split
from mmscale.data.ingest.split_names import check_split_names
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

# What reads a source that is of no other layout, the first that matches.
_GENERAL = ("hf_repository", "table", "image_folder")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the user said of a source.

    Attributes:
        layout: its name; None: the one that matches.
        split: the only one to pack, which then is the set itself.
        merge_splits: whether all splits are one set, with their names before the keys.
        reading: what the layout is told.
    """

    layout: str | None = None
    split: str | None = None
    merge_splits: bool = False
    reading: LayoutOptions = field(default_factory=LayoutOptions)


@dataclass(frozen=True)
class SplitPart:
    """A split, and what its keys begin with in its set."""

    split: Split
    key_prefix: str = ""


def open_layout(
    source: Path, options: SourceOptions, account: Account
) -> tuple[str, dict[str, list[SplitPart]]]:
    """(layout, parts of each set by its name; ``""``: the folder itself).

    Raises `UserError` naming the candidates where the layout cannot be told, or an option that
    fits nothing.
    """
    if not source.exists():
        raise UserError(f"{source}: no such folder or file; check the path")
    source = snapshot_in(source)
    root = options.reading.root
    if root is not None and not root.is_dir():
        raise UserError(f"--root {root}: no such folder; check the path")
    layout = find_layout(source, options.layout)
    splits = layout.splits(source, options.reading, account)
    check_split_names(splits, source)
    return layout.name, _sets(splits, options, source)


def find_layout(source: Path, name: str | None) -> Layout:
    """The layout of that name, or the only one that is sure."""
    if name is not None:
        if name not in LAYOUTS.names():
            raise UserError(f"--layout {name}: unknown; it is one of {', '.join(LAYOUTS.names())}")
        layout: Layout = LAYOUTS[name]
        return layout
    layouts = LAYOUTS.all()
    special = [name for name in layouts if name not in _GENERAL and layouts[name].matches(source)]
    if len(special) > 1:
        raise UserError(
            f"{source}: may be {' or '.join(special)}; say which with --layout {special[0]}"
        )
    found = special or [name for name in _GENERAL if layouts[name].matches(source)]
    if not found:
        raise UserError(
            f"{source}: not a kind of source that is read; use a folder or a table, or name one of "
            f"--layout {', '.join(layouts)}"
        )
    layout = layouts[found[0]]
    return layout


def _sets(
    splits: dict[str, Split], options: SourceOptions, source: Path
) -> dict[str, list[SplitPart]]:
    if options.split is not None and options.merge_splits:
        raise UserError("--split is for one split, --merge-splits for all; leave one out")
    if options.split is not None:
        if options.split not in splits:
            names = ", ".join(filter(None, splits)) or "none"
            raise UserError(f"{source}: no split {options.split!r}; its splits: {names}")
        return {"": [SplitPart(splits[options.split])]}
    if options.merge_splits:
        return {"": [SplitPart(split, name and f"{name}/") for name, split in splits.items()]}
    return {name: [SplitPart(split)] for name, split in splits.items()}


def with_limits(options: SourceOptions, out: Path, max_file_bytes: int) -> SourceOptions:
    """``options`` with what the pass itself knows."""
    splits = () if options.split is None else (options.split,)
    reading = replace(options.reading, out=out, max_file_bytes=max_file_bytes, splits=splits)
    return replace(options, reading=reading)
