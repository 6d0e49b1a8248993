"""Options that say what a source is and which of its columns, files and splits are meant."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmscale.errors import UserError

_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|"}


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument(
        "--layout",
        metavar="NAME",
        help="how the source is laid out, where that cannot be told: see the list below",
    )
    for role, what in (
        ("image", "pictures"),
        ("audio", "clips"),
        ("text", "texts"),
        ("label", "labels, which become json.label"),
    ):
        parser.add_argument(f"--{role}", metavar="COL", help=f"the column of the {what}")
    parser.add_argument(
        "--root",
        metavar="DIR",
        type=Path,
        help="a folder besides that of the source in which media may lie: absolute paths and links "
        "may lead into it, and relative paths are looked up in it too",
    )
    parser.add_argument(
        "--delimiter",
        metavar="C",
        help="what is between the columns of a CSV: a character, or tab (default: found)",
    )
    parser.add_argument(
        "--config", metavar="NAME", help="of a source that holds several data sets, the one to pack"
    )
    parser.add_argument("--split", metavar="NAME", help="pack this split alone, into DIR itself")
    parser.add_argument(
        "--merge-splits",
        action="store_true",
        help="pack all splits as one set, into DIR itself; keys begin with the split's name",
    )


def source_options(arguments: argparse.Namespace) -> Any:
    """The options as `SourceOptions`. Raises `UserError` for a delimiter that is none."""
    from mmscale.data.ingest.column_roles import OPTIONS
    from mmscale.data.ingest.layout import LayoutOptions
    from mmscale.data.ingest.open_layout import SourceOptions

    delimiter = arguments.delimiter
    if delimiter is not None:
        delimiter = _DELIMITERS.get(delimiter.lower(), delimiter)
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise UserError(f"--delimiter {arguments.delimiter}: give one character, or tab")
    columns = {role: getattr(arguments, role) for role in OPTIONS}
    layout = arguments.layout and arguments.layout.replace("-", "_")
    return SourceOptions(
        layout=layout,
        split=arguments.split,
        merge_splits=arguments.merge_splits,
        reading=LayoutOptions(
            columns={role: column for role, column in columns.items() if column is not None},
            root=arguments.root,
            delimiter=delimiter,
            config=arguments.config,
        ),
    )
