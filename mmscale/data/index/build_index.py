"""Builds the index of shards, local or remote, in one sequential pass that decodes nothing.

A shard is a task (`index_shard`), for this process, for several, or for a cluster. Their results
are written in the order of the shards' names, so an index is the same to the byte however it was
made. Shards that have not changed since an earlier index are not read again (`earlier_index`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmscale.config import CacheConfig, MediaConfig
from mmscale.data.account import Account
from mmscale.data.index.earlier_index import EarlierIndex, kept_choices, write_stamps
from mmscale.data.index.index_files import FOLDER, is_shard_name
from mmscale.data.index.index_shard import BadShard, IndexedShard, ShardTask, index_shard
from mmscale.data.index.index_writer import IndexWriter, replace_index
from mmscale.data.index.kept_texts import is_text, may_be_kept, too_many_of_shard
from mmscale.data.index.local_shards import shard_name, shards_of
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.sample_keys import AUTO, FIRST
from mmscale.data.index.set_notes import SetNotes
from mmscale.data.index.shard_reader import Stamp
from mmscale.data.storage.remote_file import list_shards
from mmscale.data.storage.shard_patterns import expand, group_by_folder
from mmscale.data.storage.url import is_url
from mmscale.data.worker_pool import TaskPool, WorkerPool
from mmscale.errors import UserError
from mmscale.messages import report, warn


@dataclass(frozen=True, kw_only=True)
class IndexPass:
    """How an index is made.

    Attributes:
        pool: who reads the shards; None: this process, one after the other.
        skip_bad: index the rest where a shard cannot be indexed.
        every: read every shard, also those that have not changed since the index that is there.
        key_dots: which dot of a member's name ends the key (`sample_keys`); None: as the index that
            is there has it, else ``auto``.
        recursive: take shards in sub-folders of a local folder, too; an index that has some does.
        strict: refuse what is otherwise noted in the account; the index is then not replaced.
    """

    pool: TaskPool | None = None
    skip_bad: bool = False
    every: bool = False
    key_dots: str | None = None
    strict: bool = False
    recursive: bool = False


def has_index(directory: Path) -> bool:
    """Whether ``directory`` holds a finished index."""
    return (directory / FOLDER / "manifest.json").is_file()


def index_sources(
    sources: list[str],
    out: Path | None,
    media: MediaConfig,
    progress: bool = True,
    how: IndexPass = IndexPass(),
) -> Manifest:
    """Index one local folder (`build_index`) or remote shards (`build_remote_index`).

    ``out`` gets the index; None: it lies beside the shards, which must be local.

    Raises `UserError` for what they do, and for sources and ``out`` that do not go together.
    """
    names = expand(sources)
    if any(is_url(name) for name in names):
        if out is None:
            raise UserError(
                "--out: missing; name the folder that is to hold the index of the remote shards"
            )
        return build_remote_index(names, out, media, progress, how)
    if len(names) != 1:
        raise UserError(f"{names[1]}: a second local folder; index one at a time")
    return build_index(Path(names[0]), media, progress, how, out)


def build_index(
    directory: Path,
    media: MediaConfig,
    progress: bool = True,
    how: IndexPass = IndexPass(),
    out: Path | None = None,
) -> Manifest:
    """Index every ``.tar`` of ``directory`` and replace the index that is there, or that in
    ``out``, which then stands for the shards.

    A member that cannot be used (unreadable header, over a limit of ``media``, text that is not
    UTF-8 or not JSON) leaves its whole sample out and is listed in ``index/problems.jsonl``;
    `Manifest.problems` gives these as one-line warnings. ``progress`` shows a bar in bytes on
    stderr. `Manifest.account` says what was left out, or reads otherwise than it may be meant.

    Raises `UserError` for what `tar_headers.scan` does, after all shards were looked at; when there
    is no shard, when the folder cannot be written, and when no sample is usable (its problems are
    on disk then).
    """
    directory = Path(directory)
    how = replace(how, recursive=how.recursive or kept_choices(out or directory).below)
    names = [shard_name(directory, path) for path in shards_of(directory, how.recursive)]
    if out is None or out.absolute() == directory.absolute():
        _index(directory, None, names, media, progress, how)
        return Manifest.open(directory)
    _make(out)
    _index(out, directory.absolute(), names, media, progress, how)
    return Manifest.open(out)


def build_remote_index(
    names: list[str],
    out: Path,
    media: MediaConfig,
    progress: bool = True,
    how: IndexPass = IndexPass(),
) -> Manifest:
    """`build_index` for remote shards of one folder, given by URL: writes ``out/index/`` and no
    shard.

    Every shard is read once, front to back. The index names their folder, so ``out`` stands for
    them in a config; it has the digest that `build_index` gives to a copy of the shards.

    Raises `UserError` also when the shards do not share a folder or cannot be fetched.
    """
    (base, shards), *other_folders = group_by_folder(names)
    if other_folders or isinstance(base, Path):
        odd = base if isinstance(base, Path) else other_folders[0][0]
        raise UserError(
            f"{odd}: an index is of one remote folder; index each into an --out of its own"
        )
    shards = list_shards(base, CacheConfig().retries) if shards is None else sorted(shards)
    _make(out)
    _index(out, base, shards, media, progress, how)
    return Manifest.open(out)


def _make(out: Path) -> None:
    """Make the folder of an index whose shards lie elsewhere."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be made ({error.strerror}); name another folder"
        ) from None
    if any(is_shard_name(path.name) for path in out.iterdir()):
        raise UserError(f"--out {out}: holds shards of its own; name an empty folder")


def _index(
    root: Path, elsewhere: Path | str | None, names: list[str], media: MediaConfig, progress: bool,
    how: IndexPass,
) -> None:  # fmt: skip
    """Write ``root/index/`` of the named shards, which lie in ``root`` or ``elsewhere``."""
    base = root if elsewhere is None else elsewhere
    kept = kept_choices(root)
    key_dots = how.key_dots or kept.key_dots or (FIRST if kept.is_there else AUTO)
    earlier = EarlierIndex(root, base, media, key_dots)
    # An index of before has no rule and goes on without, until it is given one.
    asked = how.key_dots or kept.key_dots or not kept.is_there
    recorded = key_dots if asked else ""
    with replace_index(root, elsewhere, recorded) as writer:
        notes = SetNotes(asked=how.key_dots is not None or recorded == FIRST)
        done = _Merged(writer, names, how.skip_bad, notes)
        new = [name for name in names if how.every or not done.take(earlier, name)]
        if 0 < len(new) < len(names):
            report(f"{len(names) - len(new)} shards have not changed and are not read again")
        tasks = [ShardTask(base=base, name=name, media=media, key_dots=key_dots) for name in new]
        with tqdm(
            total=_bytes_of(base, new),
            desc="index",
            unit="B",
            unit_scale=True,
            disable=not progress,
        ) as bar:
            for number, result in _run(tasks, how.pool, bar):
                done.add(new[number], result)
                if how.pool is not None and isinstance(result, IndexedShard):
                    bar.update(result.shard.bytes)
        done.finish()
        again = done.forgot_texts_that_fit
        if not again:
            write_stamps(writer.folder, media, key_dots, done.stamps, done.accounts)
        writer.account = notes.finish(base if isinstance(base, Path) else None, how.recursive)
        if how.strict:
            writer.account.tell(strict=True)
    if again:
        # The index that was there kept none of the texts, which with the new shards are few.
        _index(root, elsewhere, names, media, progress, replace(how, every=True))


def _run(
    tasks: list[ShardTask], pool: TaskPool | None, bar: tqdm[Any]
) -> Iterator[tuple[int, IndexedShard | BadShard]]:
    if pool is None:
        return WorkerPool(1).run(partial(index_shard, told=bar.update), tasks, len(tasks))
    return pool.run(index_shard, tasks, len(tasks))


def _bytes_of(base: Path | str, names: list[str]) -> int | None:
    """Of local shards; those of remote ones are known when they are opened."""
    if isinstance(base, str):
        return None
    return sum((base / name).stat().st_size for name in names)


class _Merged:
    """The shards of an index, however they come: each is written, and forgotten, as soon as all
    before it are.
    """

    def __init__(
        self, writer: IndexWriter, names: list[str], skip_bad: bool, notes: SetNotes
    ) -> None:
        self._writer, self._names, self._skip_bad = writer, names, skip_bad
        self._notes = notes
        self._written = 0
        self._earlier: dict[str, Callable[[], IndexedShard]] = {}
        self._new: dict[str, IndexedShard] = {}
        self._bad: dict[str, str] = {}
        self._forgot, self._fits = False, True
        self._text_bytes = self._shard_bytes = 0
        self.stamps: dict[str, Stamp] = {}
        self.accounts: dict[str, Account] = {}

    @property
    def forgot_texts_that_fit(self) -> bool:
        """Whether an earlier index kept no texts where now all are few enough to be kept."""
        few = may_be_kept(self._text_bytes, self._shard_bytes, final=True)
        return self._forgot and self._fits and few

    def take(self, earlier: EarlierIndex, name: str) -> bool:
        """Whether an earlier index has the shard as it is now."""
        if not earlier.has(name):
            return False
        self._earlier[name] = partial(earlier.get, name)
        return True

    def add(self, name: str, result: IndexedShard | BadShard) -> None:
        """Take one result."""
        if isinstance(result, BadShard):
            self._bad[name] = result.reason
        else:
            self._new[name] = result
        self._write()

    def finish(self) -> None:
        """Write what is left. Raises `UserError` naming the bad ones, unless they are skipped."""
        self._write()
        assert self._written == len(self._names)
        self._report_bad()

    def _write(self) -> None:
        while self._written < len(self._names):
            name = self._names[self._written]
            if name in self._bad:
                self._writer.skip_shard(name, self._bad[name])
            elif name in self._new:
                self._add(name, self._new.pop(name))
            elif name in self._earlier:
                self._add(name, self._earlier[name]())
            else:
                return
            self._written += 1

    def _add(self, name: str, indexed: IndexedShard) -> None:
        if self._bad and not self._skip_bad:
            return  # there will be no index: the rest is read to name all that is bad
        self._writer.add(indexed)
        self._notes.add(indexed)
        self.stamps[name], self.accounts[name] = indexed.stamp, indexed.account
        own = sum(
            facts[1]
            for _, fields in indexed.samples
            for field, facts in fields.items()
            if is_text(field)
        )
        self._text_bytes += own
        self._shard_bytes += indexed.shard.bytes
        self._fits = self._fits and not too_many_of_shard(own, indexed.shard.bytes)
        self._forgot = self._forgot or (indexed.texts is None and name in self._earlier)

    def _report_bad(self) -> None:
        if not self._bad:
            return
        reasons = [self._bad[name] for name in sorted(self._bad)]
        if not self._skip_bad and len(reasons) == 1:
            raise UserError(reasons[0])
        for reason in reasons:
            warn(reason)
        count = len(self._names)
        if not self._skip_bad:
            raise UserError(
                f"{len(reasons)} of {count} shards cannot be indexed, named above; repair them, or "
                "index the rest with --skip-bad"
            )
        report(f"{len(reasons)} of {count} shards are left out, named above")
