"""Names of remote folders and shards: which URLs are taken, and how they are put together.

A URL names a file on a server and nothing else: no password (it would end up in logs and
manifests), no query (a signed one is a password), no chain of fsspec's (``zip::s3://…``), no
command (``pipe:…``).
"""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote, urlsplit

from mmscale.errors import UserError

SCHEMES = ("http", "https", "s3", "gs", "hf")

# One letter before the colon may be a drive; "//" may stand anywhere in a local name, "://" does
# not.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_OTHER_ARCHIVE = re.compile(
    r"\.(tar\.[a-z0-9]+|tgz|tbz2?|txz|zip|7z|gz|bz2|xz|zst)$", re.IGNORECASE
)
_SHARD_NAME = re.compile(r"[^/\x00-\x1f\x7f\ufffd]+")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f]")


def is_url(name: str) -> bool:
    """Whether ``name`` is meant as a URL, of whatever scheme; an existing local name is none."""
    return ("::" in name or _SCHEME.match(name) is not None) and not os.path.exists(name)


def check_url(url: str) -> None:
    """Raise `UserError` unless ``url`` names a folder or a shard in one of the `SCHEMES`."""
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else ""
    listed = ", ".join(f"{name}://" for name in SCHEMES)
    if "::" in url or scheme not in SCHEMES or not url[len(scheme) :].startswith("://"):
        # Nothing after the scheme is repeated: in what is no URL of ours, anything may be a
        # password.
        raise UserError(
            f"{scheme}:…: no source that is read; name local folders or files, or {listed}"
        )
    try:
        parts = urlsplit(url)
        host = parts.netloc
    except ValueError:
        raise UserError(f"{scheme}://…: malformed; write {scheme}://HOST/FOLDER/NAME.tar") from None
    if "@" in host:
        raise UserError(
            f"{scheme}://{host.rpartition('@')[2]}: a user or password in the URL would end up in "
            "logs; give it through the environment (docs/remote.md says how)"
        )
    shown = f"{scheme}://{host}{parts.path}"
    if parts.query or parts.fragment or "?" in url:
        raise UserError(f"{shown}: a query (?…) or fragment (#…) is not taken; name the file alone")
    if not host or _UNPRINTABLE.search(url):
        raise UserError(
            f"{shown!r}: malformed; write {scheme}://HOST/FOLDER/NAME.tar without spaces"
        )
    if ".." in parts.path.split("/"):
        raise UserError(f"{shown}: '..' in a URL; name the folder itself")
    if _OTHER_ARCHIVE.search(parts.path):
        raise UserError(
            f"{shown}: neither a folder nor a .tar file; upload the shards as plain .tar files"
        )


def split_url(url: str) -> tuple[str, str | None]:
    """(URL of the folder without a closing slash, name of the shard or None for the folder itself).

    Raises `UserError` as `check_url` does.
    """
    check_url(url)
    scheme, _, rest = url.partition("://")
    url = f"{scheme.lower()}://{rest}"  # fsspec wants it so
    if not url.lower().endswith(".tar"):
        return url.rstrip("/"), None
    base, _, name = url.rpartition("/")
    shard = unquote(name) if _is_web(url) else name
    if not _SHARD_NAME.fullmatch(shard):
        raise UserError(
            f"{url}: the shard's name holds slashes or what is no text; rename the shard"
        )
    return base, shard


def join_url(base: str, name: str) -> str:
    """URL of the file ``name`` (may hold slashes) in the folder ``base``."""
    return f"{base}/{quote(name) if _is_web(base) else name}"


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))
