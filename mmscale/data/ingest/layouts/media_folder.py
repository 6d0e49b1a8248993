"""Hugging Face's imagefolder and audiofolder: media, and a metadata file that names them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from mmscale.data.account import Account, Notice
from mmscale.data.index.probe import kind_of
from mmscale.data.ingest.column_roles import USES, field_word
from mmscale.data.ingest.folder_walk import walk_folder
from mmscale.data.ingest.layout import LayoutOptions, SourceRow, Split, SplitRows
from mmscale.data.ingest.layouts.image_folder import note_file
from mmscale.data.ingest.parquet_table import table_rows
from mmscale.data.ingest.split_names import is_split
from mmscale.data.ingest.table_row import MEDIA_COLUMNS, is_empty
from mmscale.data.ingest.table_rows import read_table, renamed
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
UNNAMED = Notice(
    "media files that no metadata names, which are left out",
    "add a row for each, or pack the folder with --layout image_folder",
)


class MediaFolder:
    """``metadata.csv`` with ``file_name``, ``*_file_name`` or lists ``*_file_names``.

    A row is a sample. It is of the split whose folder its first file lies in.
    """

    name = "media_folder"
    summary = "Hugging Face's imagefolder or audiofolder with metadata.csv, .jsonl or .parquet"

    def matches(self, source: Path) -> bool:
        if not source.is_dir():
            return False
        folders = [source, source / "data"]
        folders += [inner / name.name for inner in (source, source / "data") if inner.is_dir()
                    for name in inner.iterdir() if is_split(name.name)]  # fmt: skip
        return any((folder / name).is_file() for folder in folders for name in METADATA)

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        uses: dict[str, str] = {}
        tables: list[Path] = []
        media: dict[Path, str] = {}
        for folder, names in walk_folder(source, options.out, options.root):
            for name in names:
                shown = (folder / name).relative_to(source).as_posix()
                if name in METADATA:
                    tables.append(folder / name)
                elif not name.startswith(".") and _is_medium(name):
                    media[folder / name] = shown
                else:
                    note_file(account, name, shown)
        if not tables:
            raise UserError(f"{source}: no metadata file; it is called {' or '.join(METADATA)}")
        splits: dict[str, list[SourceRow]] = {}
        keys: dict[tuple[str, str], int] = {}
        for table in tables:
            for row, files in _rows(table, source, options, account, uses):
                for file in files:
                    media.pop(source / file, None)
                split = _split_of(files)
                key = _key(files, split, row.key)
                seen = keys[split, key] = keys.get((split, key), 0) + 1
                # Several rows of one file, such as a caption each.
                row = replace(row, key=key if seen == 1 else f"{key}-{seen}")
                splits.setdefault(split, []).append(row)
        if "" in splits and len(splits) > 1:
            raise UserError(
                f"{splits[''][0].where}: its file lies in the folder of no split, unlike others; "
                "move it into one"
            )
        for shown in media.values():
            account.note(UNNAMED, shown)
        return {split: SplitRows(source, rows, uses) for split, rows in splits.items()}


def _rows(
    table: Path, source: Path, options: LayoutOptions, account: Account, uses: dict[str, str]
) -> Iterator[tuple[SourceRow, list[str]]]:
    """(row with its media under the names of `RowReader`, paths of its files) of a metadata file.

    Paths are relative to ``source`` where the file is there.
    """
    read = table_rows(table) if table.suffix == ".parquet" else read_table(table, options, account)
    rows = list(read)
    if not any(_is_path_column(column) for row in rows for column in row.columns):
        raise UserError(
            f"{table}: no column file_name, *_file_name or *_file_names; add the one that names "
            "the files"
        )
    chosen = {role for role in options.columns if role in MEDIA_COLUMNS}
    for row in renamed(rows, options, account, table, uses):
        columns: dict[str, Any] = {}
        named: dict[str, Any] = {}
        files: list[str] = []
        for column, value in row.columns.items():
            if column not in chosen and not _is_path_column(column):
                columns[column] = value
                continue
            if is_empty(value) or value == []:
                continue
            paths = _paths(value, table, source, f"{row.where}: {column}")
            files += paths if isinstance(paths, list) else [paths]
            name = column if column in chosen else _role(column, files[-1])
            if name in MEDIA_COLUMNS:
                uses[column] = USES[name]
                columns[name] = paths
            else:
                uses[column] = f"{name}.png, {name}.wav, …"
                named[name] = paths
        yield replace(row, columns=columns, named=named), files


def _is_path_column(column: str) -> bool:
    return column in ("file_name", "file_names") or column.endswith(("_file_name", "_file_names"))


def _role(column: str, file: str) -> str:
    """What becomes of a column of paths: the picture, the clip, or a field of its name."""
    stem = column.removesuffix("s").removesuffix("file_name").removesuffix("_")
    if not stem:
        return kind_of(file.rpartition(".")[2].lower()) or "image"
    return (
        stem.removesuffix("s")
        if stem in ("images", "image", "audios", "audio")
        else (field_word(stem))
    )


def _paths(value: Any, table: Path, source: Path, where: str) -> Any:
    if isinstance(value, list):
        return [_paths(item, table, source, where) for item in value]
    if not isinstance(value, str):
        raise UserError(f"{where} is {value!r:.40}; write the path of a file")
    inside = table.parent.relative_to(source) / value
    found = not Path(value).is_absolute() and (source / inside).exists()
    return inside.as_posix() if found else value


def _split_of(files: list[str]) -> str:
    folders = PurePosixPath(files[0]).parts[:-1] if files else ()
    return next((folder for folder in folders if is_split(folder)), "")


def _key(files: list[str], split: str, default: str) -> str:
    """The path of the first file without its ending, inside of the split."""
    if not files:
        return default
    path = PurePosixPath(files[0])
    parts = [part for part in path.parts[:-1] if part not in ("/", "..")]
    if split:
        parts = parts[parts.index(split) + 1 :]
    return "/".join([*parts, path.stem.replace(".", "_")])


def _is_medium(name: str) -> bool:
    return kind_of(name.rpartition(".")[2].lower()) in MEDIA_COLUMNS


LAYOUTS.register("media_folder", MediaFolder())
