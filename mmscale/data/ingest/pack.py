"""`pack`: folders and tables to shards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from mmscale.config import MediaConfig
from mmscale.data.account import Account
from mmscale.data.index.build_index import IndexPass
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.sample_keys import FIRST
from mmscale.data.ingest.finished_sets import FinishedSets
from mmscale.data.ingest.open_layout import SourceOptions
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.data.ingest.sources import OpenSource, open_source
from mmscale.data.ingest.stream_source import Rows, open_rows, scratch_folder
from mmscale.data.ingest.write_set import SetWriter
from mmscale.data.worker_pool import TaskPool, WorkerPool

__all__ = ["ShardWriter", "pack"]


def pack(
    source: Path | str | Rows | Mapping[str, Rows],
    out: Path | str,
    *,
    options: SourceOptions | None = None,
    strict: bool = False,
    shuffle_seed: int = 0,
    samples_per_shard: int = 1000,
    shuffle_gb: float = 8.0,
    workers: int = 1,
    pool: TaskPool | None = None,
    media: MediaConfig | None = None,
    progress: bool = True,
) -> dict[str, Manifest]:
    """Write the samples of ``source`` to shards in ``out`` and index them.

    ``source`` is in one of the layouts of `mmscale.data.ingest.layouts`; ``options`` says which,
    where it cannot be told. Or it is an iterable of dicts, or a data set of Hugging Face's
    `datasets`, or a dict of such by split (`python_rows.python_rows`).

    The manifests are given by split: each is a set in a folder of its name. A source without
    splits is the set ``""``, in ``out`` itself.

    At the end every kind of thing that was not simply taken is told (`Account`). With ``strict``
    each is an error, before anything is written.

    Media are stored as they are; those that come as bytes are named by their first bytes.

    Samples are shuffled by ``shuffle_seed``, so that neighbours in a shard are no relatives: over
    the whole source, except that Parquet of more than ``shuffle_gb`` (10^9 bytes, uncompressed) is
    shuffled in two levels. Its row groups are drawn in random order into portions of that size, and
    the samples of each portion are shuffled. One portion at a time is unpacked in ``out``, which
    needs as much room.

    ``workers`` processes write the shards (1: this process does), or a ``pool`` of others; the same
    source, seed and sizes give the same shards, byte for byte, whatever their number. Processes are
    started with the spawn method, so a script that asks for more than one needs the
    ``if __name__ == "__main__":`` guard.

    Shards and index appear in ``out`` only when all samples are written. Until then complete shards
    wait in ``out/.pack``, also after an error or a kill. The same call then continues: shards whose
    rows and files are unchanged (by size and time) are kept, a broken row can be mended in between.
    Where something changed that a complete shard holds, the call is refused; removing ``out/.pack``
    starts anew. A set of a split that is complete is
    kept as a whole.

    Raises `UserError` naming the file or row and the remedy.
    """
    media, out = media or MediaConfig(), Path(out)
    own = WorkerPool(workers)
    writer = SetWriter(
        shuffle_seed=shuffle_seed,
        samples_per_shard=samples_per_shard,
        shuffle_gb=shuffle_gb,
        pool=pool or own,
        # The keys that are written have no dots.
        index_pass=IndexPass(pool=(pool or own) if pool or workers > 1 else None, key_dots=FIRST),
        media=media,
        progress=progress,
    )
    options = options or SourceOptions()
    account = Account()
    with ExitStack() as stack:
        stack.enter_context(own)
        if isinstance(source, str | os.PathLike):
            shuffle_bytes = int(shuffle_gb * 1e9)
            opened = open_source(
                Path(source), options, media, out, account, shuffle_seed, shuffle_bytes
            )
        else:
            scratch = stack.enter_context(scratch_folder(out))
            opened = open_rows(source, options, media, scratch, account)
        if strict:
            account.tell(strict)
        manifests = _write_sets(opened, out, writer)
    account.tell()
    return manifests


def _write_sets(opened: OpenSource, out: Path, writer: SetWriter) -> dict[str, Manifest]:
    """Write each set of an opened source into its folder."""
    if opened.sets.keys() == {""}:
        return {"": writer.write(opened.sets[""], out)}
    manifests = {}
    with FinishedSets(out, list(opened.sets)) as finished:
        for name, source in opened.sets.items():
            plan = writer.plan(source)
            record = partial(finished.add, name, source, plan)
            kept = finished.kept(name, source, plan)
            manifests[name] = kept or writer.write(source, out / name, record)
    return manifests
