"""What a disk may hold after the power failed, made from the file operations that really took
place.

`recording` notes every change of names and every flush in a folder, in this process, and between
them looks at the files' contents. `after_power_failure` replays the first operations and then
forgets, as a file system may that keeps no more than POSIX promises: contents since the last flush
of the file are there, gone, cut short, zeros, or there in some blocks and not in others; each
change of names since the last flush of its folder has happened or not, whatever came after it.
(Pillai et al., *All File Systems Are Not Created Equal*, OSDI 2014.)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mmscale import prf

_BLOCK = 64  # bytes; files of the tests are small
MODES = ("all lost", "all there", "cut short", "zeros", "drawn", "drawn", "drawn", "drawn")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """``link`` and ``unlink`` a name in a folder, ``rename`` (both at once); ``write``, ``flush`` a
    file or folder.
    """

    kind: str
    node: int  # number of the file or folder that is linked, written or flushed
    folder: int = 0  # number of the folder whose names change
    name: str = ""
    old_folder: int = 0  # of a rename
    old_name: str = ""
    data: bytes = b""  # of a write: the whole contents now


@dataclass
class Recording:
    """Operations in their order, and the number of the folder they took place in."""

    root: int
    operations: list[Operation] = field(default_factory=list)


class _Recorder:
    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.RLock()
        self._names: dict[tuple[int, str], int] = {}  # (folder, name): node
        self._contents: dict[int, bytes] = {}
        self._numbers: dict[int, int] = {}  # by inode, which is used again for other files
        self._next = 1
        self.recording = Recording(self.number(folder))
        self.look()

    def look(self) -> None:
        """Note what was created or written since the last look; removals are reported, not seen."""
        names, contents = {}, {}
        for path in sorted(self._folder.rglob("*")):
            node = self.number(path)
            names[self.number(path.parent), path.name] = node
            if path.is_file():
                contents[node] = path.read_bytes()
        for (folder, name), node in names.items():
            if self._names.get((folder, name)) != node:
                self._note("link", node, folder, name)
        for node, data in contents.items():
            if self._contents.get(node) != data:
                self._note("write", node, data=data)
        self._names, self._contents = names, contents

    def number(self, path: str | Path) -> int:
        """Of a file or folder, as long as it exists."""
        inode = os.stat(path, follow_symlinks=False).st_ino
        if inode not in self._numbers:
            self._numbers[inode], self._next = self._next, self._next + 1
        return self._numbers[inode]

    def forget(self, inode: int) -> None:
        """It was removed."""
        del self._numbers[inode]

    def inside(self, path: str) -> bool:
        return path == str(self._folder) or path.startswith(f"{self._folder}/")

    def note(self, kind: str, node: int, **facts: object) -> None:
        self._note(kind, node, **facts)

    def _note(self, kind, node, folder=0, name="", **more) -> None:
        self.recording.operations.append(
            Operation(kind=kind, node=node, folder=folder, name=name, **more)
        )


@contextmanager
def recording(folder: Path) -> Iterator[Recording]:
    """Notes what is done in ``folder`` through Python's `os` functions, by any thread."""
    recorder = _Recorder(folder)
    lock = recorder._lock
    rename, replace, unlink, rmdir, fsync = os.rename, os.replace, os.unlink, os.rmdir, os.fsync

    def placed(path, handle=None):
        path = os.fspath(path)
        return (
            os.path.join(os.readlink(f"/proc/self/fd/{handle}"), path)
            if handle is not None
            else os.path.abspath(path)
        )

    node = recorder.number

    def moving(act):
        def call(old, new, **settings):
            a, b = placed(old), placed(new)
            with lock:
                if not recorder.inside(a):
                    return act(old, new, **settings)
                recorder.look()
                moved, covered = node(a), os.stat(b).st_ino if os.path.exists(b) else None
                act(old, new, **settings)
                recorder.note(
                    "rename", moved, folder=node(os.path.dirname(b)), name=os.path.basename(b),
                    old_folder=node(os.path.dirname(a)), old_name=os.path.basename(a),
                )  # fmt: skip
                if covered is not None:
                    recorder.forget(covered)
                recorder._names = {}
                count = len(recorder.recording.operations)
                recorder.look()  # learns where everything is now
                del recorder.recording.operations[count:]

        return call

    def removing(act):
        def call(path, *, dir_fd=None):
            where = placed(path, dir_fd)
            with lock:
                if not recorder.inside(where):
                    return act(path, dir_fd=dir_fd)
                recorder.look()
                gone, inode = node(where), os.stat(where).st_ino
                act(path, dir_fd=dir_fd)
                recorder.forget(inode)
                folder = node(os.path.dirname(where))
                recorder.note("unlink", gone, folder=folder, name=os.path.basename(where))
                recorder._names.pop((folder, os.path.basename(where)), None)

        return call

    def flushing(handle):
        with lock:
            number = handle if isinstance(handle, int) else handle.fileno()
            inside = recorder.inside(os.readlink(f"/proc/self/fd/{number}"))
            if inside:
                recorder.look()
            fsync(handle)
            if inside:
                recorder.note("flush", recorder.number(os.readlink(f"/proc/self/fd/{number}")))

    os.rename, os.replace, os.fsync = moving(rename), moving(replace), flushing
    os.unlink = os.remove = removing(unlink)
    os.rmdir = removing(rmdir)
    try:
        yield recorder.recording
        recorder.look()
    finally:
        os.rename, os.replace, os.fsync, os.rmdir = rename, replace, fsync, rmdir
        os.unlink = os.remove = unlink


def after_power_failure(
    done: list[Operation], root: int, into: Path, mode: str, draws: prf.Draws
) -> None:
    """Write into ``into`` what may be left of the folder ``root`` after the operations ``done``."""
    names: dict[int, dict[str, int]] = {root: {}}
    contents: dict[int, bytes] = {}
    flushed = {
        operation.node: at for at, operation in enumerate(done) if operation.kind == "flush"
    }  # the last time
    for at, operation in enumerate(done):
        if operation.kind == "write":
            if at < flushed.get(operation.node, -1):
                contents[operation.node] = operation.data
            continue
        folder = max(operation.folder, 0)
        safe = at < flushed.get(folder, -1) and at < flushed.get(operation.old_folder or folder, -1)
        kept = safe or {"all lost": False, "drawn": draws.integer(0, 2) == 1}.get(mode, True)
        if operation.kind == "flush" or not kept:
            continue
        if operation.kind in ("unlink", "rename"):
            old = operation.old_folder if operation.kind == "rename" else folder
            table = names.setdefault(old, {})
            name = operation.old_name if operation.kind == "rename" else operation.name
            if table.get(name) == operation.node:
                del table[name]
        if operation.kind in ("link", "rename"):
            names.setdefault(folder, {})[operation.name] = operation.node
    written = {
        operation.node: operation.data for operation in done if operation.kind == "write"
    }  # the newest contents
    for node, data in written.items():
        if contents.get(node) != data:
            contents[node] = _torn(contents.get(node, b""), data, mode, draws)
    _make(root, into, names, contents)


def _torn(before: bytes, after: bytes, mode: str, draws: prf.Draws) -> bytes:
    """Contents that were on their way from ``before`` to ``after``."""
    drawn = mode == "drawn"
    if drawn:
        mode = MODES[draws.integer(0, 4)]
    if mode == "all lost":
        return before
    if mode == "all there":
        return after
    if mode == "cut short":
        return after[: draws.integer(0, len(after) + 1) if drawn else len(after) // 2]
    blocks = range(0, len(after), _BLOCK)
    there = [drawn and draws.integer(0, 2) == 1 for _ in blocks]
    return b"".join(
        after[at : at + _BLOCK] if here else bytes(len(after[at : at + _BLOCK]))
        for at, here in zip(blocks, there, strict=True)
    )


def _make(
    node: int, path: Path, names: dict[int, dict[str, int]], contents: dict[int, bytes]
) -> None:
    path.mkdir()
    for name, child in names.get(node, {}).items():
        if child in contents:
            (path / name).write_bytes(contents[child])
        else:
            _make(child, path / name, names, contents)
