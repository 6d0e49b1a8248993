"""Remote files, read forward through fsspec, whatever the network does on the way.

A transfer that fails in passing (connection refused, reset or silent, body cut short, HTTP 408,
425, 429 and 5xx, S3's SlowDown and the like) is taken up at the byte reached, after a pause that
doubles with every failure in a row. None of fsspec's caches is used; its file systems are made anew
in every process, because their event loop does not survive a fork.
"""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import fsspec
from fsspec.asyn import sync

from mmscale import prf
from mmscale.data.storage.retryable import HttpError, Interrupted, Unusable, diagnose
from mmscale.data.storage.url import SCHEMES, check_url
from mmscale.errors import UserError

# One request to an object store, and the most of a file that is held in memory.
CHUNK = 8 << 20

Result = TypeVar("Result")

_FIRST_PAUSE_S = 0.2
# Of pauses that double: a server that is back is found soon, while what was fetched ahead lasts.
_MOST_GROWN_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 60.0  # of those that the server asks for
_CONNECT_S = 30.0
_SILENCE_S = 30.0  # a server that sends nothing for so long has hung up
_REMEDY = "check the URL, the network and the credentials (docs/remote.md)"
_REPLACED = "it was replaced while it was read"
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class RemoteFault(Exception):
    """A remote file cannot be fetched, or only after too many failures. The text is the reason,
    without URL.
    """


class NoRanges(Exception):
    """The server answers a request for a range with the whole file."""


class RemoteFile(io.RawIOBase):
    """One forward pass over a remote file or a range of it, in one request where nothing fails.

    Wrap it in `io.BufferedReader` for reads of exact sizes.

    Args:
        url: a checked one (`url.check_url`), or a name joined to one.
        retries: passing failures in a row, without a byte of progress, after which it gives up.
        part: (first byte, byte after the last) of the range; None: the whole file.

    Attributes:
        size: bytes of the whole file.
        requests: how many were made so far.

    Raises:
        RemoteFault: the file cannot be fetched, or changed during the pass (of a ``part``: its
            size did).
        NoRanges: a ``part`` was asked for, and the server gives whole files alone.
        UserError: the library for the scheme is missing.
    """

    def __init__(self, url: str, retries: int, part: tuple[int, int] | None = None) -> None:
        super().__init__()
        self._body: _Body | None = None
        self.name = url
        self.size, self.requests = -1, 0
        self._version = ""
        self._at = part[0] if part else 0
        self._end = part[1] if part else None
        self._failures = _Failures(url, retries)
        while not self._tried(self._connect):
            pass

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer`` from its start with what is at hand, at least one byte; 0 at the end of
        the file or range.
        """
        end = self.size if self._end is None else min(self._end, self.size)
        view = memoryview(buffer)[: max(0, end - self._at)]
        if not view:
            return 0
        before = self._at
        while self._at == before:
            self._tried(lambda: self._receive(view))
        self._failures.forget()
        return self._at - before

    def close(self) -> None:
        self._hang_up()
        super().close()

    @property
    def version(self) -> str:
        """Changes with the content, where the server reports it; else empty."""
        return self._version

    def _tried(self, act: Callable[[], None]) -> bool:
        """Whether ``act`` went well; after a failure it may be tried again."""
        try:
            act()
        except Exception as error:  # whatever a library raises
            self._hang_up()
            self._failures.add(error)
            return False
        return True

    def _receive(self, view: memoryview) -> None:
        if self._body is None:
            self._connect()
        assert self._body is not None
        data = self._body.read(len(view))
        if not data:
            raise Interrupted
        view[: len(data)] = data
        self._at += len(data)

    def _connect(self) -> None:
        self.requests += 1
        body = _open_body(self.name, self._at, self._end)
        self._body = body
        if self.size < 0:
            self.size, self._version = body.size, body.version
        # Who reads a part knows what it must be; two mirrors may have two names for one version.
        same = self._end is not None or body.version == self._version
        if body.size != self.size or not same:
            raise Unusable(_REPLACED)

    def _hang_up(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()


class _Failures:
    """Failures in a row, and the pauses they call for."""

    def __init__(self, url: str, most: int) -> None:
        self._url, self._most, self._count = url, most, 0

    def add(self, error: Exception) -> None:
        """Count a failure and wait before the next attempt; raises `RemoteFault` if there is to be
        none.
        """
        if isinstance(error, UserError | AssertionError | NoRanges):
            raise error
        fault = diagnose(error)
        self._count += 1
        if not fault.passing:
            raise RemoteFault(fault.reason) from None
        if self._count > self._most:
            raise RemoteFault(f"{fault.reason}, {self._count} times in a row") from None
        time.sleep(_pause(self._url, self._count, fault.wait_s))

    def forget(self) -> None:
        """There was progress: what comes next is a first failure."""
        self._count = 0


@contextmanager
def open_remote(url: str, retries: int, remedy: str = _REMEDY) -> Iterator[RemoteFile]:
    """A `RemoteFile` for code that cannot do without it: failures are `UserError`s that end with
    ``remedy``.
    """
    try:
        with RemoteFile(url, retries) as file:
            yield file
    except RemoteFault as fault:
        raise UserError(f"{url}: cannot be fetched ({fault}); {remedy}") from None


def open_beginning(url: str, size: int, retries: int) -> RemoteFile:
    """The first ``size`` bytes of a remote file, so that little more is sent; where the server
    knows no ranges, all of it.

    Raises `RemoteFault` as `RemoteFile`.
    """
    try:
        return RemoteFile(url, retries, (0, size))
    except NoRanges:
        return RemoteFile(url, retries)


def attempt(url: str, retries: int, act: Callable[[Any], Result]) -> Result:
    """What ``act`` makes of the file system of ``url``; after a passing failure it is called again.

    Raises:
        RemoteFault: as `RemoteFile` does.
        UserError: the library for the scheme is missing.
    """
    failures = _Failures(url, retries)
    while True:
        try:
            return act(file_system(url))
        except Exception as error:  # whatever a library raises
            failures.add(error)


def list_shards(base: str, retries: int) -> list[str]:
    """Names of the ``.tar`` files of the remote folder ``base``, sorted; hidden ones are left out.

    Raises `UserError` when there are none, or for a web server, which has no listing to rely on.
    """
    if base.startswith(("http://", "https://")):
        raise UserError(
            f"{base}: a web server gives no reliable list of its files; name the shards, as in "
            f"{base}/part-{{0000..0099}}.tar, or in a list: @FILE"
        )
    try:
        listed: list[str] = attempt(base, retries, lambda system: system.ls(base, detail=False))
    except RemoteFault as fault:
        raise UserError(f"{base}: cannot be listed ({fault}); {_REMEDY}") from None
    names = sorted(path.rpartition("/")[2] for path in listed if path.lower().endswith(".tar"))
    names = [name for name in names if not name.startswith(".")]
    if not names:
        raise UserError(f"{base}: no .tar shards; check the URL")
    return names


def check_remote(url: str) -> None:
    """Raise `UserError` if ``url`` is not taken or the library for its scheme is missing; asks no
    server.
    """
    check_url(url)
    file_system(url)


def file_system(url: str) -> Any:
    """This process's fsspec file system for ``url``. Raises `UserError` where its library is not
    installed.
    """
    scheme = url.partition("://")[0]
    assert scheme in SCHEMES, "check_url was not called"
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in ("http", "https"):
        options["get_client"] = _web_client
    if scheme == "s3":
        # Attempts are counted here; those of botocore below would multiply them.
        configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}} | configured
    try:
        system = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise UserError(
            f"{scheme}:// needs the Python package {error.name}; run `pip install "
            "'mmscale[remote]'`"
        ) from None
    if scheme == "s3":
        system.retries = 1
    return system


class _Body(Protocol):
    """The bytes of a remote file from some offset on. ``version`` changes with the content, where
    the server reports it.
    """

    size: int
    version: str

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


def _open_body(url: str, at: int, end: int | None) -> _Body:
    """The bytes from ``at`` to ``end``, or to the end of the file."""
    system = file_system(url)
    if "http" in system.protocol:
        return _WebBody(system, url, at, end)
    if end is not None and "s3" in system.protocol:
        return _S3Body(system, url, at, end)
    return _ObjectBody(system, url, at)


class _ObjectBody:
    """A file of an object store; every read is one request for a range."""

    def __init__(self, system: Any, url: str, at: int) -> None:
        self._file = system.open(url, "rb", block_size=CHUNK, cache_type="none")
        self.size: int = self._file.size
        details = self._file.details
        tags = ("ETag", "etag", "md5Hash", "blob_id")
        self.version = next((str(details[tag]) for tag in tags if details.get(tag)), "")
        self._file.seek(at)

    def read(self, size: int, /) -> bytes:
        data: bytes = self._file.read(min(size, CHUNK))
        return data

    def close(self) -> None:
        self._file.close()


class _S3Body:
    """A range of an S3 object, streamed: its answer has the object's size, so one request does."""

    def __init__(self, system: Any, url: str, at: int, end: int) -> None:
        self._loop = system.loop
        bucket, key, _ = system.split_path(url)
        wanted = f"bytes={at}-{end - 1}"
        answer = system.call_s3("get_object", Bucket=bucket, Key=key, Range=wanted)
        self._stream = answer["Body"]
        self.version = str(answer.get("ETag", ""))
        try:
            if "ContentRange" not in answer:
                raise NoRanges
            self.size = _whole_size(answer["ContentRange"], at, end)
        except BaseException:
            self.close()
            raise

    def read(self, size: int, /) -> bytes:
        data: bytes = sync(self._loop, self._stream.read, size)
        return data

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stream.close)


class _WebBody:
    """The answer to one GET, streamed."""

    def __init__(self, system: Any, url: str, at: int, end: int | None) -> None:
        self._loop = system.loop
        self._response = sync(self._loop, _get, system, url, at, end)
        try:
            self._understand(at, end)
        except BaseException:
            self.close()
            raise

    def read(self, size: int, /) -> bytes:
        data: bytes = sync(self._loop, self._response.content.read, size)
        return data

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._response.close)

    def _understand(self, at: int, end: int | None) -> None:
        status, headers = self._response.status, self._response.headers
        if not 200 <= status < 300:
            if status == 416 and end is None:  # asked for to go on at ``at``
                raise Unusable(_REPLACED)
            raise HttpError(status, headers.get("Retry-After", ""))
        if headers.get("Content-Encoding", "identity") != "identity":
            raise Unusable("the server compresses it; switch that off for .tar files")
        self.version = headers.get("ETag") or headers.get("Last-Modified", "")
        if status == 206:
            self.size = _whole_size(headers.get("Content-Range", ""), at, end)
            return
        if end is not None:
            raise NoRanges
        length = headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Unusable("the server does not report its size")
        self.size = int(length)
        if at > self.size:
            raise Unusable(_REPLACED)
        # The server knows no ranges: it starts over, and so does the reading.
        while at > 0:
            skipped = len(self.read(at))
            if not skipped:
                raise Interrupted
            at -= skipped


def _whole_size(content_range: str, at: int, end: int | None) -> int:
    """Bytes of the whole file, from the header of a range that begins at ``at``, ends by ``end``.

    A server may give less than it was asked for (RFC 9110, 15.3.7); the rest is asked for again.
    """
    match = _CONTENT_RANGE.fullmatch(content_range)
    if match is None or int(match[1]) != at or (end is not None and int(match[2]) >= end):
        raise Unusable("the server answers with another range than asked for")
    return int(match[3])


async def _get(system: Any, url: str, at: int, end: int | None) -> Any:
    import aiohttp

    session = await system.set_session()
    headers = {"Accept-Encoding": "identity"}
    if at or end is not None:
        headers["Range"] = f"bytes={at}-{'' if end is None else end - 1}"
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
    return await session.get(system.encode_url(url), headers=headers, timeout=timeout)


async def _web_client(loop: asyncio.AbstractEventLoop, **options: Any) -> Any:
    """An aiohttp session that heeds the environment's proxies and ~/.netrc, as other programs
    do.
    """
    import aiohttp

    return aiohttp.ClientSession(loop=loop, **({"trust_env": True} | options))


def _pause(url: str, failures: int, wait_s: float | None) -> float:
    """Seconds before the next attempt: as long as the server says, or doubling, spread by a keyed
    draw.
    """
    if wait_s is not None:
        return min(wait_s, _LONGEST_PAUSE_S)
    spread = prf.Draws(prf.derive_key("retry", url, failures)).uniform(0.5, 1.0)
    return min(_FIRST_PAUSE_S * 2 ** min(failures - 1, 30), _MOST_GROWN_PAUSE_S) * spread
