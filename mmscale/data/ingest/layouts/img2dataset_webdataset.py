"""What img2dataset writes with ``--output_format webdataset``, and any other folder of shards."""

from __future__ import annotations

from pathlib import Path

from mmscale.data.account import Account
from mmscale.data.ingest.layout import LayoutOptions, Split
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

# What stands beside the shards of tools.
_BESIDE = (".json", ".parquet", ".txt", ".md", ".idx", ".csv")


class Img2datasetWebdataset:
    """``00000.tar``, ``00000.parquet``, ``00000_stats.json``: shards already, which need no pack.

    To write them anew would cost their size in disk, and change nothing.
    """

    name = "img2dataset_webdataset"
    summary = "tar shards, as img2dataset's webdataset: told that `mmscale data index` reads them"

    def matches(self, source: Path) -> bool:
        if source.is_file():
            return source.suffix.lower() == ".tar"
        if not source.is_dir():
            return False
        entries = [path for path in source.iterdir() if not path.name.startswith(".")]
        shards = [path for path in entries if path.suffix.lower() == ".tar"]
        others = [path for path in entries if path.suffix.lower() not in (".tar", *_BESIDE)]
        return bool(shards) and all(path.name == "index" for path in others)

    def splits(self, source: Path, options: LayoutOptions, account: Account) -> dict[str, Split]:
        folder = source if source.is_dir() else source.parent
        raise UserError(
            f"{source}: tar files are shards already; `mmscale data index {folder}` reads them as "
            "they are"
        )


LAYOUTS.register("img2dataset_webdataset", Img2datasetWebdataset())
