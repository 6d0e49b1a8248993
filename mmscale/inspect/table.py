"""The table of a report: one row per sample, one column per measure."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.errors import UserError

if TYPE_CHECKING:
    import pandas

COLUMNS = {
    "set": "string",
    "sample": "int64",
    "shard": "string",
    "key": "string",
    "image_bytes": "Int64",
    "image_width": "Int64",
    "image_height": "Int64",
    "image_contrast": "Int64",
    "image_hash": "string",
    "image_phash": "UInt64",
    "image_colours": "object",
    "image_fault": "string",
    "audio_bytes": "Int64",
    "audio_seconds": "Float64",
    "audio_rate": "Int64",
    "audio_peak": "Float64",
    "audio_level": "Float64",
    "audio_clipped_samples": "Int64",
    "audio_hash": "string",
    "audio_fault": "string",
    "text_characters": "Int64",
    "text_replacements": "Int64",
    "text_script": "string",
    "text_hash": "string",
    "text_bare_hash": "string",
    "text": "string",
    "text_fault": "string",
    "cls": "string",
    "cls_fault": "string",
    "json_fault": "string",
}
"""Columns every table has, and their types; ``json.<path>`` columns, strings, follow. Null: not
there.
"""

MAX_PATHS = 100
"""Columns ``json.<path>`` at the most: JSON whose names are data would make one for every sample.
"""


def import_extra(module: str) -> Any:
    """A module of the ``tables`` extra. Raises `UserError` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # the module is there, and broken: a bug, or a broken installation
        raise UserError(
            f"inspecting data needs {error.name}; run `pip install 'mmscale[tables]'`"
        ) from None


def build_table(rows: Iterable[dict[str, Any]]) -> pandas.DataFrame:
    """The rows of `scan_samples` as a table of `COLUMNS` and the most frequent ``json.<path>``
    columns.
    """
    pd = import_extra("pandas")
    gathered = list(rows)
    seen = Counter(name for row in gathered for name in row if name not in COLUMNS)
    frequent = sorted(seen, key=lambda name: (-seen[name], name))[:MAX_PATHS]
    types = COLUMNS | dict.fromkeys(sorted(frequent), "string")
    # A column at a time: through objects, pandas would turn 64-bit hashes into floats.
    return pd.DataFrame(
        {
            name: pd.array([row.get(name) for row in gathered], dtype=kind)
            for name, kind in types.items()
        }
    )


def write_sample_table(table: pandas.DataFrame, path: Path) -> None:
    """Write Parquet. Raises `UserError` when the file cannot be written."""
    import_extra("pyarrow")
    try:
        table.to_parquet(path, engine="pyarrow", index=False)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); name another file"
        ) from None
