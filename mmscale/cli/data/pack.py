"""`mmscale data pack`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmscale.cli.data.manifest import print_sets
from mmscale.cli.data.media_limits import add_media_limits, media_limits
from mmscale.cli.data.source_options import add_source_options, source_options
from mmscale.cli.data.task_pool import add_task_pool, open_task_pool
from mmscale.cli.verb import verb

PACK_EPILOG = """\
what a source is (--layout, where it cannot be told):
  LAYOUTS
Look first: --dry-run prints the first samples of each split, what becomes of each column and file,
and what is left out.

splits:
  train/ and test/, train-*.parquet and test-*.parquet, or a column split become a set each:
  DIR/train, DIR/test. The name of a split is no label. Without splits the set is DIR itself.
  --split NAME packs one alone, --merge-splits all as one set.

columns of a table:
  image, audio   a path relative to the table; in Parquet also the encoded bytes, or {bytes, path}
                 as in Hugging Face data sets
  text, cls      caption or transcript; class number
  key            name of the sample (default: the number of its row)
  any other      a field json.<column>; nested values and dates are kept
  image, audio and text may be lists (JSON, Parquet): the fields 0.jpg, 1.jpg, …
  Columns under other names: --image COL, --audio COL, --text COL, --label COL (json.label).

At the end every kind of thing that was not simply taken is told in one line: how many, examples,
the option that changes it. --strict makes each an error before anything is written.

If a pack was killed, or stopped at a broken row, the same command continues it. Shards and index
appear in DIR when all samples are written. Until then complete shards wait in DIR/.pack.

examples:
  mmscale data pack photos/ --out shards/photos                  photos/cat/1.jpg, photos/dog/2.jpg
  mmscale data pack imagenet/ --out shards/imagenet --dry-run    train/cat/1.jpg, val/cat/9.jpg
  mmscale data pack clips.csv --out shards/clips --audio file --text sentence --max-audio-s 60
  mmscale data pack rows.tsv --out shards/rows --root /data/photos
  mmscale data pack captions/ --out shards/captions              metadata.csv with file_name, text
  mmscale data pack datasets/cifar10/ --out shards/cifar10       data/train-00000-of-00001.parquet
  mmscale data pack ~/.cache/huggingface/hub/datasets--x--y --out shards/y --config en
  mmscale data pack laion/ --out shards/laion                    files of img2dataset
"""


class _PackHelp(argparse.RawDescriptionHelpFormatter):
    """Names every layout, which are imported only now."""

    def add_text(self, text: str | None) -> None:
        if text is not None and "  LAYOUTS\n" in text:
            from mmscale.registry import LAYOUTS

            layouts = LAYOUTS.all().items()
            width = max(len(name) for name, _ in layouts)
            lines = "".join(f"  {name:{width}}  {layout.summary}\n" for name, layout in layouts)
            text = text.replace("  LAYOUTS\n", lines)
        super().add_text(text)


def add(verbs: Any) -> None:
    """Declare the command `data pack` and its options."""
    pack = verb(
        verbs,
        "pack",
        _pack,
        "folder, CSV, JSON or Parquet of media and text → shards and index",
        epilog=PACK_EPILOG,
    )
    pack.formatter_class = _PackHelp
    pack.add_argument(
        "source",
        help="a folder of media files (cat/001.jpg with cat/001.txt), a .csv, .tsv, .json, .jsonl "
        "or .parquet, or another layout of those below",
    )
    pack.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="an empty or new folder, or the folder of a pack to continue",
    )
    add_source_options(pack)
    pack.add_argument(
        "--dry-run",
        action="store_true",
        help="print the first samples, what becomes of each column and file, and what is left out; "
        "write nothing",
    )
    pack.add_argument(
        "--strict",
        action="store_true",
        help="whatever is not simply taken is an error, before anything is written",
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
    from mmscale.data.ingest.preview import preview

    source, out = Path(arguments.source), Path(arguments.out)
    options, media = source_options(arguments), media_limits(arguments)
    if arguments.dry_run:
        looked = preview(source, out, options, media, arguments.strict)
        if not arguments.json:
            print("\n".join(looked.lines()))
        return looked.facts()
    with open_task_pool(arguments) as pool:
        manifests = pack(
            source,
            out,
            options=options,
            strict=arguments.strict,
            shuffle_seed=arguments.shuffle_seed,
            samples_per_shard=arguments.samples_per_shard,
            shuffle_gb=arguments.shuffle_gb,
            pool=pool,
            media=media,
            progress=True,
        )
    return print_sets(out, manifests, arguments.json)
