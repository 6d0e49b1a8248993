"""`mmscale data index`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmscale.cli.data.manifest import print_manifest
from mmscale.cli.data.media_limits import add_media_limits, media_limits
from mmscale.cli.data.task_pool import add_task_pool, open_task_pool
from mmscale.cli.verb import verb
from mmscale.errors import UserError
from mmscale.messages import report

if TYPE_CHECKING:
    from mmscale.data.index.manifest import Manifest

INDEX_EPILOG = """\
Every shard is read once, from front to back; of a set that grew, the new shards alone. Remote
shards stay where they are. A config names DIR, and a run fetches what it reads into the local cache
(data.cache). Texts that are few beside the shards are kept with the index, so that a start reads no
shard to count their tokens. A bad shard does not end the pass: all of them are named at its end.
See docs/remote.md.

A member is named KEY.FIELD. --key-dots says which dot ends the key: first, the first one of the
base name, as webdataset has it; last, so that every file is named by its ending alone; a number, so
many dots are in the key. auto is webdataset's rule, except where it would make one sample of
several pictures or clips: 22.05.png and 22.06.png are two samples, x.left.png and x.right.png are
one, and so are x.0.jpg and x.1.jpg. An index keeps its rule when it is made again. See
docs/formats.md.

The pass ends with what it did not simply take, and what changes it. --strict makes that an error.

examples:
  mmscale data index shards/train
  mmscale data index 's3://bucket/train/part-{0000..0099}.tar' --out indexes/train
  mmscale data index s3://bucket/train/ --out indexes/train
  mmscale data index /mnt/read-only/train --out indexes/train
  mmscale data index shards/train --tokenizer tokenizer.json --count text json.caption
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
        help="folder for the index, for remote shards and for local ones that cannot be written "
        "beside; it then stands for the shards",
    )
    index.add_argument(
        "--key-dots",
        metavar="RULE",
        help="which dot of a member's name ends its key: auto, first, last, or a number of dots "
        "(default: as the index that is there has it, else auto)",
    )
    index.add_argument(
        "--recursive",
        action="store_true",
        help="take the shards in sub-folders of a local folder, too (an index that has some does)",
    )
    index.add_argument(
        "--strict",
        action="store_true",
        help="fail where anything is left out or reads otherwise than it may be meant; the index "
        "that is there stays",
    )
    index.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="a tokenizer.json: count the tokens of texts now, and keep the counts with the index, "
        "so that a start of training reads no text",
    )
    index.add_argument(
        "--count",
        nargs="+",
        metavar="FIELD",
        help="with --tokenizer: text fields to count, such as text or json.caption (default: text "
        "and cls, where there are any)",
    )
    index.add_argument(
        "--skip-bad",
        action="store_true",
        help="where shards cannot be indexed, name them and index the rest (default: name them and "
        "fail)",
    )
    index.add_argument(
        "--all",
        action="store_true",
        help="read every shard, also those that have not changed since the index that is there",
    )
    add_task_pool(index, "the index is the same")
    add_media_limits(index)


def _index(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.data.index.build_index import IndexPass, index_sources
    from mmscale.data.index.sample_keys import check_key_dots

    if arguments.count and not arguments.tokenizer:
        raise UserError("--count: is for --tokenizer FILE; name the tokenizer, or leave it away")
    out = Path(arguments.out) if arguments.out else None
    with open_task_pool(arguments) as pool:
        how = IndexPass(
            pool=pool,
            skip_bad=arguments.skip_bad,
            every=arguments.all,
            key_dots=None if arguments.key_dots is None else check_key_dots(arguments.key_dots),
            strict=arguments.strict,
            recursive=arguments.recursive,
        )
        manifest = index_sources(arguments.sources, out, media_limits(arguments), how=how)
    if arguments.tokenizer:
        _count_tokens(manifest, arguments.tokenizer, arguments.count)
    facts = print_manifest(manifest, arguments.json)
    manifest.account.tell()
    return facts


def _count_tokens(manifest: Manifest, file: str, fields: list[str] | None) -> None:
    from mmscale.data.index.field_reference import split_reference
    from mmscale.data.planning.token_counts import keep_token_counts
    from mmscale.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(file)
    for field in fields or ():
        if split_reference(field)[0] not in ("text", "cls", "json"):
            raise UserError(f"--count {field}: not a text; name text, cls or json.<path>")
        manifest.locate(field)
    if fields is None:
        fields = [field for field in ("text", "cls") if manifest.has(field)]
    keep_token_counts(manifest, tokenizer, fields)
    report(f"tokens of {', '.join(fields) or 'no field'} are counted")
