"""`mmscale data index`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmscale.cli.data.manifest import print_manifest
from mmscale.cli.data.media_limits import add_media_limits, media_limits
from mmscale.cli.verb import verb

INDEX_EPILOG = """\
Every shard is read once, from front to back. Remote shards stay where they are. A config names DIR,
and each shard is fetched into the local cache (data.cache) when one of its samples is first needed.
See docs/remote.md.

examples:
  mmscale data index shards/train
  mmscale data index 's3://bucket/train/part-{0000..0099}.tar' --out indexes/train
  mmscale data index s3://bucket/train/ --out indexes/train
"""


def add(verbs: Any) -> None:
    """Declare the command `data index` and its options."""
    index = verb(verbs, "index", _index, "index existing shards, local or remote", INDEX_EPILOG)
    index.add_argument(
        "sources",
        nargs="+",
        metavar="DIR_OR_URL",
        help="a local folder of .tar shards; or http(s)://, s3://, gs://, hf:// URLs of the shards "
        "of one remote folder, brace patterns of such, or @FILE, a list of them",
    )
    index.add_argument(
        "--out",
        metavar="DIR",
        help="remote shards only: folder for the index; it then stands for the shards",
    )
    add_media_limits(index)


def _index(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.data.index.build_index import index_sources

    out = Path(arguments.out) if arguments.out else None
    manifest = index_sources(arguments.sources, out, media_limits(arguments), progress=True)
    return print_manifest(manifest, arguments.json)
