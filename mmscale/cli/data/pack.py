"""`mmscale data pack`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmscale.cli.data.manifest import print_manifest
from mmscale.cli.data.media_limits import add_media_limits, media_limits
from mmscale.cli.data.task_pool import add_task_pool, open_task_pool
from mmscale.cli.verb import verb

PACK_EPILOG = """\
columns of a table:
  image, audio   a path relative to the table; in Parquet also the encoded bytes, or {bytes, path}
                 as in Hugging Face data sets
  text, cls      caption or transcript; class number
  key            name of the sample (default: the number of its row)
  any other      a field json.<column>; nested values and dates are kept
  image, audio and text may be lists (JSONL, Parquet): the fields 0.jpg, 1.jpg, …

If a pack was killed, or stopped at a broken row, the same command continues it. Shards and index
appear in DIR when all samples are written. Until then complete shards wait in DIR/.pack.

examples:
  mmscale data pack photos/ --out shards/train
  mmscale data pack clips.csv --out shards/train --max-audio-s 60
  mmscale data pack dataset/data/ --out shards/train --workers 8
"""


def add(verbs: Any) -> None:
    """Declare the command `data pack` and its options."""
    pack = verb(
        verbs,
        "pack",
        _pack,
        "folder, CSV, JSONL or Parquet of media and text → shards and index",
        epilog=PACK_EPILOG,
    )
    pack.add_argument(
        "source",
        help="a folder of media files (cat/001.jpg with cat/001.txt), a .csv, .jsonl or .parquet, "
        "or a folder of .parquet files",
    )
    pack.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="an empty or new folder, or the folder of a pack to continue",
    )
    add_task_pool(pack, "the shards are the same")
    pack.add_argument(
        "--samples-per-shard",
        type=int,
        default=1000,
        metavar="N",
        help="samples in one shard (default: 1000)",
    )
    pack.add_argument(
        "--shuffle-seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the samples' order (default: 0)",
    )
    pack.add_argument(
        "--shuffle-gb",
        type=float,
        default=8.0,
        metavar="GB",
        help="Parquet only: a larger source (10^9 bytes, uncompressed) is shuffled in portions of "
        "this size, each made of row groups from all over it; DIR needs as much more room while it "
        "is packed (default: 8)",
    )
    add_media_limits(pack)


def _pack(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.data.ingest.pack import pack

    with open_task_pool(arguments) as pool:
        manifest = pack(
            Path(arguments.source),
            Path(arguments.out),
            shuffle_seed=arguments.shuffle_seed,
            samples_per_shard=arguments.samples_per_shard,
            shuffle_gb=arguments.shuffle_gb,
            pool=pool,
            media=media_limits(arguments),
            progress=True,
        )
    return print_manifest(manifest, arguments.json)
