"""Rows that are Python objects: dicts, and data sets of Hugging Face's `datasets` as they are.

Nothing of that library is imported: its objects are known by what they have.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmscale.data.ingest.column_roles import FEATURES, OTHER_NAMES, ColumnRoles, field_word, rename
from mmscale.data.ingest.layout import SourceRow
from mmscale.data.ingest.table_row import MEDIA_COLUMNS
from mmscale.data.media.format import ending_of
from mmscale.errors import UserError
from mmscale.plain_file import read_plain

_BY_NAME = {name: kind for kind, names in OTHER_NAMES.items() for name in names}
_LISTS = ("List", "LargeList", "Sequence")


def python_rows(
    rows: Iterable[Mapping[str, Any]], columns: dict[str, str], max_file_bytes: int
) -> Iterator[SourceRow]:
    """The samples of dicts, or of a `Dataset` or `IterableDataset`.

    Pictures and clips may be what `RowReader` takes, a Pillow picture or an array (stored as PNG),
    or ``{"array", "sampling_rate"}`` (stored without loss). A data set's pictures and clips are
    stored as they came, undecoded; its class labels become names.

    ``columns``: as `layout.LayoutOptions` has them. Raises `UserError` naming the row.
    """
    features = getattr(rows, "features", None)
    rows, roles = (rows, None) if features is None else _undecoded(rows, features, columns)
    for number, row in enumerate(rows, start=1):
        where = f"row {number}"
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: {type(row).__name__}, not a dict; give named columns")
        values = {
            name: _value(value, f"{where}: {name}", max_file_bytes) for name, value in row.items()
        }
        taken, named = (roles or _roles(values, columns, where)).apply(values, where)
        yield SourceRow(where, taken, f"{number:08d}", named=named)


def _roles(values: dict[str, Any], columns: dict[str, str], where: str) -> ColumnRoles:
    """What the columns of a dict are: by the options, their names, and what is a medium."""
    renamed, left = rename(columns, list(values), where)
    named: dict[str, str] = {}
    for name, value in values.items():
        if name in renamed or name in left or name in MEDIA_COLUMNS or not _is_medium(value):
            continue
        kind = _BY_NAME.get(name)
        if kind is not None and kind not in values and kind not in renamed.values():
            renamed[name] = kind
        else:
            named[name] = field_word(name)
    return ColumnRoles(renamed=renamed, named=named, left_out=frozenset(left))


def _is_medium(value: Any) -> bool:
    """Whether a value, as `_value` gives it, is the bytes of a medium, or several."""
    if isinstance(value, list):
        return bool(value) and all(_is_medium(item) for item in value)
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        value = value["bytes"]
    return isinstance(value, bytes) and ending_of(value) is not None


def _undecoded(rows: Any, features: Mapping[str, Any], columns: dict[str, str]) -> Any:
    """(the data set with its media as bytes and paths, what its columns are)."""
    if hasattr(rows, "with_format"):
        rows = rows.with_format(None)
    names = list(features)
    renamed, left = rename(columns, names, "the data set")
    named: dict[str, str] = {}
    classes: dict[str, list[str]] = {}
    for column, feature in features.items():
        inner = feature.feature if type(feature).__name__ in _LISTS else feature
        kind = FEATURES.get(type(inner).__name__)
        if kind is not None:
            bare = type(inner)(decode=False)
            rows = rows.cast_column(column, bare if inner is feature else type(feature)(bare))
            if column not in renamed and column not in left and column != kind:
                free = kind not in names and kind not in renamed.values()
                if free:
                    renamed[column] = kind
                else:
                    named[column] = field_word(column)
        elif type(inner).__name__ == "ClassLabel":
            classes[column] = list(inner.names)
    return rows, ColumnRoles(
        renamed=renamed, named=named, classes=classes, left_out=frozenset(left)
    )


def _value(value: Any, where: str, max_file_bytes: int) -> Any:
    """A value as `RowReader` takes it."""
    if isinstance(value, list | tuple):
        return [_value(item, where, max_file_bytes) for item in value]
    if isinstance(value, Mapping):
        if value.keys() >= {"array", "sampling_rate"}:
            return _sound(np.asarray(value["array"]), int(value["sampling_rate"]), where)
        if value.keys() == {"bytes", "path"}:
            return _stored(value, where, max_file_bytes)
        return {str(name): _value(item, where, max_file_bytes) for name, item in value.items()}
    if hasattr(value, "get_all_samples"):  # a decoder of sounds
        samples = value.get_all_samples()
        return _sound(np.asarray(samples.data).T, int(samples.sample_rate), where)
    if hasattr(value, "save") and hasattr(value, "mode"):  # a Pillow picture
        return _picture(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return _array(value)
    return value


def _stored(value: Mapping[str, Any], where: str, max_file_bytes: int) -> Any:
    """The bytes of a medium; its file is read where it has none."""
    if value["bytes"] is not None or not value["path"]:
        return dict(value)
    try:
        return read_plain(Path(value["path"]), max_file_bytes)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{where}: {value['path']}: cannot be read ({error}); restore the file, or give bytes"
        ) from None


def _picture(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _array(values: np.ndarray) -> Any:
    """Bytes of a picture: [height, width], or with 3 or 4 channels, of 8 bits; other values as
    lists.
    """
    is_picture = values.dtype == np.uint8 and (
        values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))
    )
    if not is_picture:
        return values.tolist()
    from PIL import Image

    return _picture(Image.fromarray(values))


def _sound(samples: np.ndarray, rate: int, where: str) -> bytes:
    """A file that holds the samples, [frames] or [frames, channels], exactly: FLAC of 16 or 24
    bits where they fit, else a WAV of floats.
    """
    import soundfile

    if samples.ndim not in (1, 2) or not len(samples):
        raise UserError(
            f"{where}: a sound of shape {samples.shape}; give [frames] or [frames, channels]"
        )
    if samples.ndim == 2 and samples.shape[1] > samples.shape[0]:
        samples = samples.T  # channels first, as some libraries have them
    buffer = io.BytesIO()
    if samples.dtype == np.int16:
        soundfile.write(buffer, samples, rate, format="FLAC", subtype="PCM_16")
        return buffer.getvalue()
    if not np.issubdtype(samples.dtype, np.floating):
        raise UserError(f"{where}: a sound of {samples.dtype}; give floats of -1 to 1, or int16")
    for bits, dtype, shift in ((16, np.int16, 0), (24, np.int32, 8)):
        scaled = samples.astype(np.float64) * 2 ** (bits - 1)
        whole = np.rint(scaled)
        if np.array_equal(whole, scaled) and np.abs(whole).max() < 2 ** (bits - 1):
            integers = whole.astype(dtype) << shift
            soundfile.write(buffer, integers, rate, format="FLAC", subtype=f"PCM_{bits}")
            return buffer.getvalue()
    subtype = "DOUBLE" if samples.dtype == np.float64 else "FLOAT"
    if subtype == "DOUBLE" and np.array_equal(samples.astype(np.float32), samples):
        subtype = "FLOAT"
    soundfile.write(buffer, samples, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()
