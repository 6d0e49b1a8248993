"""A file written past the page cache, where the file system allows it, while its next bytes are
made ready.

The kernel's copy into its cache costs about as much as hashing the same bytes, and pushes the
training data out of memory for bytes that nobody reads soon. A write past it (``O_DIRECT``, ``man 2
open``) needs memory and places that are multiples of a block, so the bytes are gathered in a few
buffers, which threads hand to the disk.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

_BLOCK = 4096  # bytes; what the disks and file systems ask for is this or a part of it
_BUFFER = 1 << 20  # bytes
_WRITERS = 4
_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux


class DirectFile:
    """A new file, or one that is written anew. Use it in a ``with``; it is whole and on the disk
    after `finish`.

    Every call raises `OSError` if that, or an earlier write, failed.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._direct = bool(_DIRECT)
        try:
            self._handle = os.open(path, flags | _DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL or not _DIRECT:
                raise
            self._direct = False
            self._handle = os.open(path, flags, 0o666)
        self._threads = ThreadPoolExecutor(_WRITERS, "write")
        # Shared mappings: a process that is forked in mid-write must not get them copied on write
        # (man 2 open).
        self._buffers = [memoryview(mmap.mmap(-1, _BUFFER)) for _ in range(_WRITERS + 2)]
        self._writes: list[Future[None] | None] = [None] * len(self._buffers)
        self._current = self._filled = 0
        self.size = 0  # bytes so far

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._threads.shutdown()
        os.close(self._handle)

    def write(self, data: memoryview) -> None:
        """Append bytes; ``data`` may change afterwards."""
        while data:
            part = data[: _BUFFER - self._filled]
            self._buffers[self._current][self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            self.size += len(part)
            data = data[len(part) :]
            if self._filled == _BUFFER:
                self._send(_BUFFER)

    def finish(self) -> None:
        """Return when every byte lies on the disk."""
        rest = self._filled % _BLOCK
        tail = bytes(self._buffers[self._current][self._filled - rest : self._filled])
        self._send(self._filled - rest)
        for number in range(len(self._buffers)):
            self._wait(number)
        self._through_the_cache()
        self._put(memoryview(tail), self.size - rest)
        os.fsync(self._handle)

    def _send(self, count: int) -> None:
        """Give the first bytes of the current buffer to a thread, and continue with the one given
        away the longest ago.
        """
        data, at = self._buffers[self._current][:count], self.size - self._filled
        self._writes[self._current] = self._threads.submit(self._put, data, at)
        self._current, self._filled = (self._current + 1) % len(self._buffers), 0
        self._wait(self._current)

    def _wait(self, number: int) -> None:
        write, self._writes[number] = self._writes[number], None
        if write is not None:
            write.result()

    def _put(self, data: memoryview, at: int) -> None:
        """A single write may take less than it was given."""
        while data:
            direct = self._direct
            try:
                done = os.pwrite(self._handle, data, at)
            except OSError as error:
                if error.errno != errno.EINVAL or not direct:
                    raise
                self._through_the_cache()  # the file system says only now that it does not allow it
                continue
            data, at = data[done:], at + done
            if done % _BLOCK:
                self._through_the_cache()

    def _through_the_cache(self) -> None:
        if self._direct:
            fcntl.fcntl(
                self._handle, fcntl.F_SETFL, fcntl.fcntl(self._handle, fcntl.F_GETFL) & ~_DIRECT
            )
            self._direct = False
