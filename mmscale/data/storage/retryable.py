"""What went wrong with a remote file, and whether trying again may help.

Reasons are made from status codes, errno and exception types alone. The libraries' own messages are
not repeated, because they may hold signed URLs and request headers.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from dataclasses import dataclass
from http import HTTPStatus

from fsspec.exceptions import FSTimeoutError

# Other errors of the system and of S3 (which s3fs translates to errno) may pass by themselves.
_LASTING_ERRNO = {
    errno.EACCES,
    errno.EINVAL,
    errno.EISDIR,
    errno.EMSGSIZE,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSYS,
    errno.ENOTDIR,
    errno.EPERM,
    getattr(errno, "EREMCHG", errno.ENOENT),
}
_PASSING_STATUS = {408, 425, 429}
# Of these libraries, exceptions that are no OSError and have no status are failures of the
# connection, but for those whose name says otherwise.
_NETWORK_LIBRARIES = {
    "aiohttp",
    "aiobotocore",
    "botocore",
    "httpcore",
    "httpx",
    "requests",
    "urllib3",
}
_CREDENTIALS = "no usable credentials; the environment gives none"
_LASTING_NAMES = {
    "DefaultCredentialsError": _CREDENTIALS,
    "InvalidURL": "the URL is malformed",
    "NoCredentialsError": _CREDENTIALS,
    "ParamValidationError": "the URL is malformed",
    "PartialCredentialsError": _CREDENTIALS,
    "ProfileNotFound": _CREDENTIALS,
    "RefreshError": _CREDENTIALS,
    "TooManyRedirects": "too many redirects",
}


@dataclass(frozen=True)
class Fault:
    """``reason`` in a few words; ``passing``: try again, after ``wait_s`` seconds if the server
    named a time.
    """

    reason: str
    passing: bool
    wait_s: float | None = None


class HttpError(Exception):
    """A server answered with a status that is no success."""

    def __init__(self, status: int, retry_after: str = "") -> None:
        super().__init__(status)
        self.status = status
        # The other form, a date, would need the server's clock; it gets the usual pause.
        self.wait_s = (
            float(retry_after) if retry_after.isdecimal() and len(retry_after) < 10 else None
        )


class Interrupted(Exception):
    """A transfer ended before all bytes were there, without an error of its own."""


class Unusable(Exception):
    """What the server gave cannot be used, and will not change by asking again. The text is the
    reason.
    """


def diagnose(error: Exception) -> Fault:
    """The fault behind an exception of this package, of fsspec or of a library below it."""
    if isinstance(error, Unusable):
        return Fault(str(error), passing=False)
    if isinstance(error, Interrupted):
        return Fault("the transfer ended early", passing=True)
    if isinstance(error, TimeoutError | asyncio.TimeoutError | FSTimeoutError):
        return Fault("timed out", passing=True)
    if isinstance(error, ssl.CertificateError):
        return Fault("the server's certificate is not trusted", passing=False)
    status = _status(error)
    if status is not None:
        return _of_status(status, error.wait_s if isinstance(error, HttpError) else None)
    name = type(error).__name__
    if name in _LASTING_NAMES:
        return Fault(_LASTING_NAMES[name], passing=False)
    if isinstance(error, OSError):
        return _of_os_error(error)
    return Fault(name, passing=type(error).__module__.partition(".")[0] in _NETWORK_LIBRARIES)


def _status(error: Exception) -> int | None:
    """The HTTP status an exception carries: ours, gcsfs's, huggingface_hub's or, behind s3fs's,
    botocore's.
    """
    answer = getattr(error.__cause__, "response", None)
    if isinstance(answer, dict):
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "code", "status_code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 400 <= status < 600:
                return status
    return None


def _of_status(status: int, wait_s: float | None) -> Fault:
    known = status in HTTPStatus._value2member_map_
    reason = f"HTTP {status} {HTTPStatus(status).phrase}" if known else f"HTTP {status}"
    return Fault(reason, passing=status in _PASSING_STATUS or status >= 500, wait_s=wait_s)


def _of_os_error(error: OSError) -> Fault:
    if isinstance(error, FileNotFoundError):
        return Fault("there is no such file", passing=False)
    if isinstance(error, PermissionError):
        return Fault("access is denied; check the credentials in the environment", passing=False)
    if error.errno == socket.EAI_NONAME:
        return Fault("there is no such host", passing=False)
    if error.errno in (socket.EAI_AGAIN, socket.EAI_FAIL):
        return Fault("the host's name cannot be resolved", passing=True)
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return Fault(reason, passing=error.errno not in _LASTING_ERRNO)
