"""`mmscale data`: pack, index, verify, inspect, order."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from mmscale.cli.verb import add_config, verb
from mmscale.errors import UserError

PACK_EPILOG = """\
columns of a table:
  image, audio   a path relative to the table; in Parquet also the encoded bytes, or {bytes, path} as Hugging Face
                 data sets have it
  text, cls      caption or transcript; class number
  key            name of the sample (default: the row's number)
  any other      a field json.<column>; nested values and dates are kept
  image, audio and text may be lists (JSONL, Parquet): the fields 0.jpg, 1.jpg, …

A pack that was killed, or that stopped at a broken row, continues when the same command is given again. Shards
and index appear in DIR when all samples are written; until then complete shards wait in DIR/.pack.

examples:
  mmscale data pack photos/ --out shards/train
  mmscale data pack clips.csv --out shards/train --max-audio-s 60
  mmscale data pack dataset/data/ --out shards/train --workers 8
"""

INDEX_EPILOG = """\
Every shard is read once, front to back. Remote shards stay where they are: a config names DIR, and each shard is
fetched into the local cache (data.cache) when a sample of it is first needed. docs/remote.md tells more.

examples:
  mmscale data index shards/train
  mmscale data index 's3://bucket/train/part-{0000..0099}.tar' --out indexes/train
  mmscale data index s3://bucket/train/ --out indexes/train
"""

INSPECT_EPILOG = """\
Every sample is read and decoded once: what is broken, blank, clipped, silent or empty, what is there twice, and what
one folder shares with another, such as test with train. The page is one file without scripts; open it in a browser.
Needs `pip install 'mmscale[tables]'`.

examples:
  mmscale data inspect shards/train shards/test --html report.html
  mmscale data inspect shards/a shards/b --name train --name test --html report.html --table report.parquet
  mmscale data inspect shards/train --html report.html --sample 20000
"""

# Keys of `MediaConfig` that `data pack` and `data index` take as options.
MEDIA_LIMITS = ("max_audio_s", "max_image_pixels", "max_file_bytes")


def add(verbs: Any) -> None:
    """Declare the command `data` and its options."""
    data = verbs.add_parser("data", help="prepare, check and look at data").add_subparsers(
        required=True, metavar="COMMAND"
    )
    pack = verb(
        data,
        "pack",
        _data_pack,
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
        help="empty or new folder, or that of the pack to continue",
    )
    pack.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: all cores); the shards are the same",
    )
    pack.add_argument(
        "--samples-per-shard", type=int, default=1000, metavar="N", help="default: 1000"
    )
    pack.add_argument(
        "--shuffle-seed", type=int, default=0, metavar="N", help="order of the samples (default: 0)"
    )
    pack.add_argument(
        "--shuffle-gb",
        type=float,
        default=8.0,
        metavar="GB",
        help="Parquet only: a larger source (10^9 bytes, uncompressed) is shuffled in portions of this size, each "
        "made of row groups from all over it; DIR needs as much more room while it is packed "
        "(default: 8)",
    )
    addmedia_limits(pack)

    index = verb(
        data, "index", _data_index, "index existing shards, anyone's, local or remote", INDEX_EPILOG
    )
    index.add_argument(
        "sources",
        nargs="+",
        metavar="DIR_OR_URL",
        help="a local folder of .tar shards; or http(s)://, s3://, gs://, hf:// URLs of the shards of one remote "
        "folder, brace patterns of such, or @FILE, a list of them",
    )
    index.add_argument(
        "--out",
        metavar="DIR",
        help="remote shards only: folder for the index; it then stands for the shards",
    )
    addmedia_limits(index)

    verify_shards = verb(
        data,
        "verify",
        _data_verify,
        "strict checks of shards against their index; fails on any fault",
    )
    verify_shards.add_argument("directory", help="a folder of indexed shards")

    inspect = verb(
        data,
        "inspect",
        _data_inspect,
        "a page on how much data there is and what is wrong with it",
        INSPECT_EPILOG,
    )
    inspect.add_argument(
        "sources",
        nargs="+",
        metavar="DIR",
        help="a folder of indexed shards; several are compared, training data first",
    )
    inspect.add_argument("--html", required=True, metavar="F", help="the page to write")
    inspect.add_argument(
        "--name",
        action="append",
        default=[],
        help="what the page calls a folder, once for each DIR (default: the folder's name)",
    )
    inspect.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="look at N samples of each folder, drawn at random, not at all",
    )
    inspect.add_argument(
        "--table", metavar="F.parquet", help="also write what was found of every sample, for pandas"
    )
    inspect.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="which samples are drawn and shown (default: 0)",
    )
    inspect.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes (default: all cores); the page is the same",
    )

    order = verb(data, "order", _data_order, "what is seen when, by whom, as JSON lines")
    add_config(order)
    order.add_argument(
        "--steps", required=True, metavar="A:B", help="steps A up to, not including, B"
    )
    order.add_argument(
        "--world", type=int, default=1, metavar="W", help="number of ranks (default: 1)"
    )
    order.add_argument("--rank", type=int, metavar="R", help="print this rank's share only")


def addmedia_limits(parser: argparse.ArgumentParser) -> None:
    from mmscale.config import MediaConfig

    for name in MEDIA_LIMITS:
        key = MediaConfig.__dataclass_fields__[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(key.default),
            default=key.default,
            metavar="N",
            help=f"{key.metadata['doc'].rstrip('.')} (default: {key.default:,})",
        )


def media_limits(arguments: argparse.Namespace) -> Any:
    from mmscale.config import MediaConfig

    limits = {name: getattr(arguments, name) for name in MEDIA_LIMITS}
    for name, value in limits.items():
        if not value > 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: a limit is above 0")
    return MediaConfig(**limits)


def _data_pack(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.data.ingest.pack import pack
    from mmscale.data.worker_pool import available_cores

    manifest = pack(
        Path(arguments.source),
        Path(arguments.out),
        shuffle_seed=arguments.shuffle_seed,
        samples_per_shard=arguments.samples_per_shard,
        shuffle_gb=arguments.shuffle_gb,
        workers=available_cores() if arguments.workers is None else arguments.workers,
        media=media_limits(arguments),
        progress=True,
    )
    return _tell_manifest(manifest, arguments.json)


def _data_index(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.data.index.build_index import index_sources

    out = Path(arguments.out) if arguments.out else None
    manifest = index_sources(arguments.sources, out, media_limits(arguments), progress=True)
    return _tell_manifest(manifest, arguments.json)


def _tell_manifest(manifest: Any, quiet: bool) -> dict[str, Any]:
    facts = {
        "directory": str(manifest.root),
        "samples": len(manifest),
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.entries),
        "fields": manifest.fields,
        "problems": manifest.problem_count,
        "digest": manifest.digest,
    }
    for problem in itertools.islice(manifest.problems(), 20):
        print(f"mmscale: warning: {problem}", file=sys.stderr)
    if manifest.problem_count > 20:
        reasons = manifest.root / "index" / "problems.jsonl"
        print(f"mmscale: warning: {manifest.problem_count} in all; see {reasons}", file=sys.stderr)
    if not quiet:
        print(
            f"{manifest.root}: {facts['samples']:,} samples in {facts['shards']:,} shards of "
            f"{facts['bytes'] / 1e6:,.1f} MB in all, fields {', '.join(manifest.fields)}"
        )
        print(f"digest {manifest.digest}")
    return facts


def _data_verify(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.data.index.build_index import verify_shards

    faults = verify_shards(Path(arguments.directory))
    if faults:
        for fault in faults:
            print(fault, file=sys.stderr)
        raise UserError(
            f"{arguments.directory}: {len(faults)} faults, listed above; copy the shards again or "
            "index anew"
        )
    if not arguments.json:
        print(f"{arguments.directory}: no fault found")
    return {"directory": arguments.directory, "faults": 0}


def _data_inspect(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.inspect.run import inspect

    result = inspect(
        arguments.sources,
        Path(arguments.html),
        names=arguments.name,
        sample=arguments.sample,
        table=Path(arguments.table) if arguments.table else None,
        seed=arguments.seed,
        workers=arguments.workers,
    )
    if not arguments.json:
        for warning in result["warnings"]:
            print(f"{warning['severity']}: {warning['title']}")
        print(f"{arguments.html}: open it in a browser")
    return result


def _data_order(arguments: argparse.Namespace) -> None:
    from mmscale.config_file import load_config
    from mmscale.data.planning.step_plan import check_world
    from mmscale.train.prepare import finished_steps, open_plan, prepare_data, run_tokenizer

    config = load_config(arguments.config, arguments.overrides, arguments.plugins)
    first, _, last = arguments.steps.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise UserError(f"--steps {arguments.steps}: write A:B, such as 0:10")
    if arguments.world < 1 or (
        arguments.rank is not None and not 0 <= arguments.rank < arguments.world
    ):
        raise UserError(
            f"--rank {arguments.rank} --world {arguments.world}: a rank counts from 0 to W-1"
        )
    check_world(config.data.sequences, arguments.world)
    prepare_data(config)
    plan = open_plan(config, run_tokenizer(config), finished_steps(Path(config.run.dir)))
    for step in range(int(first), int(last)):
        shares = [
            (r, s) for r in range(arguments.world) for s in plan.share(step, r, arguments.world)
        ]
        for rank, sequence in sorted(shares, key=lambda share: share[1].number):
            if arguments.rank is None or rank == arguments.rank:
                dataset = plan.sets[sequence.set_index].dataset
                keys = [dataset.key(sample) for sample in sequence.samples.tolist()]
                row = {"step": step, "sequence": sequence.number, "rank": rank, "keys": keys}
                print(json.dumps(row, ensure_ascii=False))
