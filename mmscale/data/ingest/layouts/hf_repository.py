"""A data set's repository on Hugging Face: Parquet or other tables, by split and config."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mmscale.data.account import Account, Notice
from mmscale.data.ingest.csv_source import TABLES
from mmscale.data.ingest.folder_walk import folders_in, walk_folder
from mmscale.data.ingest.layout import LayoutOptions, SourceRow, Split, SplitParquet, SplitRows
from mmscale.data.ingest.layouts.image_folder import note_file
from mmscale.data.ingest.layouts.media_folder import METADATA
from mmscale.data.ingest.parquet_source import parquet_splits
from mmscale.data.ingest.repository_card import card_configs, matching
from mmscale.data.ingest.split_names import divide, is_split, split_in
from mmscale.data.ingest.table_rows import by_split_column, read_table, renamed
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

# The kind of which there are files is taken, the first of these.
_ENDINGS = (".parquet", *TABLES)
# What the `datasets` library keeps beside the data.
_NO_DATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", *METADATA)
_BESIDE = ("README.md", ".gitattributes", "LICENSE", *_NO_DATA[: -len(METADATA)])

OTHER_CONFIGS = Notice("configs that are not packed", "--config NAME packs one")
OTHER_KIND = Notice(
    "tables of another kind than those that are packed", "pack a table by giving its own path"
)
NO_CONFIG = Notice("tables of no config that README.md names", "pack them by giving their path")


class HuggingFaceRepository:
    """``data/train-00000-of-00002.parquet``, ``en/test-*.parquet``, or as README.md says.

    Its download cache too, whose links lead into ``blobs``.
    """

    name = "hf_repository"
    summary = "a Hugging Face data set: data/train-*.parquet, several configs, its download cache"

    def matches(self, source: Path) -> bool:
        if not source.is_dir():
            return False
        folders = folders_in(source)
        inner = [
            path
            for folder in folders
            if is_split(folder.name) or folder.name == "data"
            for path in folders_in(folder)
        ]
        if any(_has_tables(folder, (".parquet",)) for folder in (*folders, *inner)):
            return True
        tables = [path for folder in (source, source / "data") if folder.is_dir()
                  for path in folder.iterdir() if _is_table(path.name)]  # fmt: skip
        return bool(tables) and (
            bool(card_configs(source, Account())) or all(split_in(path.stem) for path in tables)
        )

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        files = _tables(source, options, account)
        splits = _of_config(source, files, options, account)
        folder = Path(os.path.commonpath([file.parent for of in splits.values() for file in of]))
        if files[0].suffix.lower() == ".parquet":
            if splits.keys() == {""}:
                return parquet_splits(SplitParquet(folder, splits[""]))
            return {name: SplitParquet(folder, of_split) for name, of_split in splits.items()}
        uses: dict[str, str] = {}
        rows = {
            name: [row for file in of_split for row in _rows(file, folder, options, account, uses)]
            for name, of_split in splits.items()
        }
        if rows.keys() == {""}:
            return {**by_split_column(rows[""], folder, uses)}
        return {name: SplitRows(folder, of_split, uses) for name, of_split in rows.items()}


def _rows(
    file: Path, folder: Path, options: LayoutOptions, account: Account, uses: dict[str, str]
) -> Iterator[SourceRow]:
    inside = file.relative_to(folder).with_suffix("").as_posix().replace(".", "_")
    for row in renamed(read_table(file, options, account), options, account, file, uses):
        yield replace(row, key=f"{inside}/{row.key}")


def _tables(source: Path, options: LayoutOptions, account: Account) -> list[Path]:
    """The files of one kind that hold rows. Notes all others."""
    found: dict[str, list[Path]] = {}
    for folder, names in walk_folder(source, options.out, options.root):
        for name in names:
            if _is_table(name):
                found.setdefault(Path(name).suffix.lower(), []).append(folder / name)
            elif name not in _BESIDE:
                note_file(account, name, (folder / name).relative_to(source).as_posix())
    kind = next((ending for ending in _ENDINGS if ending in found), None)
    if kind is None:
        raise UserError(f"{source}: no table in it; it ends in {', '.join(_ENDINGS)}")
    for ending, files in found.items():
        for file in files if ending != kind else []:
            account.note(OTHER_KIND, file.relative_to(source).as_posix())
    return found[kind]


def _of_config(
    source: Path, files: list[Path], options: LayoutOptions, account: Account
) -> dict[str, list[Path]]:
    """The files of the config that is asked for, by split."""
    card = card_configs(source, account)
    if not card:
        configs = _by_folder(source, files)
        chosen = _choose(source, list(configs), [], options, account)
        return divide(((file, _split_of(file, source)) for file in configs[chosen]), account)
    defaults = [name for name, config in card.items() if config.is_default]
    chosen = _choose(source, list(card), defaults, options, account)
    splits: dict[str, list[Path]] = {}
    for split, pattern in card[chosen].patterns:
        of_pattern = matching(files, source, pattern)
        if not of_pattern:
            raise UserError(
                f"{source / 'README.md'}: no file fits {pattern!r} of config {chosen!r}; download "
                "it, or correct the header"
            )
        if split:
            splits.setdefault(split, []).extend(of_pattern)
        else:
            named = divide(((file, _split_of(file, source)) for file in of_pattern), account)
            for name, of_split in named.items():
                splits.setdefault(name, []).extend(of_split)
    known = {
        file
        for config in card.values()
        for _, pattern in config.patterns
        for file in matching(files, source, pattern)
    }
    for file in files:
        if file not in known:
            account.note(NO_CONFIG, file.relative_to(source).as_posix())
    return {split: sorted(dict.fromkeys(of_split)) for split, of_split in splits.items()}


def _by_folder(source: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Files by the config that the first folder of their path names."""
    configs: dict[str, list[Path]] = {}
    for file in files:
        folders = [part for part in file.relative_to(source).parts[:-1] if part != "data"]
        config = folders[0] if folders and not is_split(folders[0]) else "default"
        configs.setdefault(config, []).append(file)
    return configs


def _choose(
    source: Path, names: list[str], defaults: list[str], options: LayoutOptions, account: Account
) -> str:
    listed = ", ".join(names[:20])
    if options.config is not None:
        if options.config not in names:
            raise UserError(f"{source}: no config {options.config!r}; it has {listed}")
        return options.config
    if len(names) == 1:
        return names[0]
    if len(defaults) != 1:
        raise UserError(f"{source}: several configs; pack one with --config: {listed}")
    for name in names:
        if name != defaults[0]:
            account.note(OTHER_CONFIGS, name)
    return defaults[0]


def _split_of(file: Path, source: Path) -> str:
    folders = file.relative_to(source).parts[:-1]
    return next((folder for folder in folders if is_split(folder)), "") or split_in(file.stem)


def _is_table(name: str) -> bool:
    return Path(name).suffix.lower() in _ENDINGS and name[0] != "." and name.lower() not in _NO_DATA


def _has_tables(folder: Path, endings: tuple[str, ...]) -> bool:
    return any(
        path.suffix.lower() in endings and path.name[0] != "." and path.name not in METADATA
        for path in folder.iterdir()
    )


LAYOUTS.register("hf_repository", HuggingFaceRepository())
