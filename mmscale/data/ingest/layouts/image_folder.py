"""A folder for each class, as torchvision's ImageFolder reads it; of pictures, sound or texts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from mmscale.data.account import Account, Notice
from mmscale.data.index.probe import kind_of
from mmscale.data.ingest.folder_walk import folders_in, walk_folder
from mmscale.data.ingest.layout import LayoutOptions, SourceRow, Split, SplitRows
from mmscale.data.ingest.parquet_source import parquet_files
from mmscale.data.ingest.split_names import is_split
from mmscale.data.ingest.table_row import MEDIA_COLUMNS
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

ENDINGS_NOT_READ = Notice(
    "files with endings that are not read", "convert them, or move them away if they are no samples"
)
NOT_A_SAMPLE = Notice(
    "metadata files not used, as no medium or text has their name",
    "name a json or cls as the file that it describes, or pack by a table",
)
TABLE_BESIDE = Notice(
    "metadata files not used: tables beside the media", "pack by a table by giving its own path"
)
HIDDEN = Notice("hidden files and folders", "rename what is to be packed")
SEVERAL = Notice(
    "samples of several pictures or clips, whose names differ in their endings alone",
    "rename the files to make a sample of each",
)
TEXT_ALONE = Notice(
    "texts alone, each a sample beside those of pictures or sound",
    "move them away, if they describe the folder",
)
EMPTY_CLASS = Notice("folders without a sample", "remove them, or restore their files")
BESIDE = Notice(
    "files beside the folders of the splits, which are packed into none", "move them into a split"
)
DEEP_SPLIT = Notice(
    "folders named like a split inside of a class, whose samples are all one set",
    "pack the folder that they lie in by itself to keep them apart",
)
A_CLASS = Notice(
    "classes named like a split, as they lie beside others",
    "if it is one, move the others away, or pack it by itself",
)
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
# What systems and programs leave behind.
_LITTER = frozenset((".ds_store", ".gitattributes", ".gitignore", ".directory", ".localized"))
_LITTER_FOLDERS = frozenset((".git", ".cache", ".huggingface", ".pack", ".ipynb_checkpoints"))


class ImageFolder:
    """``cat/001.jpg``: the first folder is the label; files of one name are one sample.

    With ``train/cat/001.jpg`` every split is a set; its name is no label.
    """

    name = "image_folder"
    summary = "a folder for each class, with or without split folders (ImageFolder); media, texts"

    def matches(self, source: Path) -> bool:
        return source.is_dir() and not parquet_files(source)

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        folders = split_folders(source, options, account)
        if not folders:
            return {"": SplitRows(source, samples(source, options, account), _USES)}
        return {
            folder.name: SplitRows(folder, samples(folder, options, account), _USES)
            for folder in folders
        }


_USES = {
    "name": "the sample's name: folder and file name without ending",
    "label": "json.label: the first folder, where the sample has no json of its own",
    "files": "fields named by their endings",
}


def split_folders(source: Path, options: LayoutOptions, account: Account) -> list[Path]:
    """The folders of ``source`` that are splits, by name; empty: it has none.

    Raises `UserError` where folders of samples lie beside several of them.
    """
    skipped = options.out and options.out.resolve()
    folders = [folder for folder in folders_in(source) if folder.resolve() != skipped]
    found = [folder for folder in folders if is_split(folder.name)]
    if not found:
        return []
    others = [folder for folder in folders if not is_split(folder.name)]
    others = [folder for folder in others if _has_samples(folder, options)]
    if others and len(found) == 1:
        account.note(A_CLASS, found[0].name)
        return []
    if others:
        raise UserError(
            f"{others[0]}: a folder of samples beside the splits "
            f"{', '.join(folder.name for folder in found)}; move it away, or pack each by itself"
        )
    loose = sorted(path.name for path in source.iterdir() if path.is_file())
    for name in loose:
        if kind_of(name.rpartition(".")[2].lower()) in (*MEDIA_COLUMNS, "text"):
            account.note(BESIDE, name)
        else:
            note_file(account, name, name)
    return found


def samples(
    source: Path,
    options: LayoutOptions,
    account: Account,
    labelled: bool = True,
    known: Collection[str] = (),
) -> Iterator[SourceRow]:
    """Files of one folder and stem are one sample; the first folder is its label, if
    ``labelled``. Files of names that are ``known`` are none, and not noted.
    """

    def on_hidden(folder: Path) -> None:
        if folder.name not in _LITTER_FOLDERS:
            account.note(HIDDEN, f"{folder.relative_to(source).as_posix()}/")

    alone: list[str] = []
    has_media = False
    for folder, names in walk_folder(source, options.out, options.root, on_hidden):
        inside = folder.relative_to(source)
        stems: dict[str, dict[str, Path]] = {}
        for name in names:
            if name in known:
                continue
            stem, _, ending = name.rpartition(".")
            ending = ending.lower()
            if not stem or name.startswith(".") or kind_of(ending) is None:
                note_file(account, name, (inside / name).as_posix())
                continue
            files = stems.setdefault(stem, {})
            if ending in files:
                raise UserError(
                    f"{folder / name}: its sample has {files[ending].name!r} too; rename one of "
                    "them"
                )
            files[ending] = folder / name
        label = inside.parts[:1] if labelled else ()
        if label and any(is_split(part) for part in inside.parts[1:]):
            account.note(DEEP_SPLIT, inside.as_posix())
        taken = 0
        for stem, files in stems.items():
            kinds = [kind_of(ending) for ending in files]
            if not any(kind in (*MEDIA_COLUMNS, "text") for kind in kinds):
                # On its own it describes the folder, not a sample.
                for path in files.values():
                    account.note(NOT_A_SAMPLE, path.relative_to(source).as_posix())
                continue
            if any(kinds.count(kind) > 1 for kind in MEDIA_COLUMNS):
                account.note(SEVERAL, f"{(inside / stem).as_posix()}.{{{','.join(files)}}}")
            if any(kind in MEDIA_COLUMNS for kind in kinds):
                has_media = True
            else:
                alone.append((inside / next(iter(files.values())).name).as_posix())
            taken += 1
            yield SourceRow(
                where=str(folder / stem),
                columns={"label": label[0]} if label and "json" not in files else {},
                # A dot would end the key, and what follows become part of the field.
                key=(inside / stem.replace(".", "_")).as_posix(),
                files=files,
            )
        if not taken and len(inside.parts) == 1 and not _has_samples(folder, options):
            account.note(EMPTY_CLASS, inside.as_posix())
    for name in alone if has_media else []:
        account.note(TEXT_ALONE, name)


def note_file(account: Account, name: str, shown: str) -> None:
    """Note a file that is no sample's."""
    if name.startswith("."):
        if name.lower() not in _LITTER and not name.startswith("._"):
            account.note(HIDDEN, shown)
    elif name.lower().endswith(_TABLES):
        account.note(TABLE_BESIDE, shown)
    elif name.lower() not in ("thumbs.db", "desktop.ini"):
        account.note(ENDINGS_NOT_READ, shown)


def _has_samples(folder: Path, options: LayoutOptions) -> bool:
    return any(
        kind_of(name.rpartition(".")[2].lower()) in (*MEDIA_COLUMNS, "text")
        for _, names in walk_folder(folder, options.out, options.root)
        for name in names
        if not name.startswith(".") and "." in name
    )


LAYOUTS.register("image_folder", ImageFolder())
