"""URLs: the schemes that are read, and nothing that could run, chain or leak."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mmscale.data.storage.url import SCHEMES, check_url, is_url, join_url, split_url
from mmscale.errors import UserError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://host/a/b.tar", ("https://host/a", "b.tar")),
        ("HTTP://host:8080/a%20b%E7%8F%AD.tar", ("http://host:8080", "a b班.tar")),
        ("https://host/a/", ("https://host/a", None)),
        ("s3://bucket/train", ("s3://bucket/train", None)),
        ("s3://bucket/a%20b.tar", ("s3://bucket", "a%20b.tar")),
        ("gs://bucket/x.tar", ("gs://bucket", "x.tar")),
        ("hf://datasets/me/repo@main/data/x.tar", ("hf://datasets/me/repo@main/data", "x.tar")),
    ],
)
def test_split(url: str, expected: tuple[str, str | None]) -> None:
    assert is_url(url) and split_url(url) == expected
    base, name = expected
    if name:
        assert split_url(join_url(base, name)) == expected


def test_names_are_quoted_for_the_web_only() -> None:
    assert join_url("https://h/d", "a b#1?.tar") == "https://h/d/a%20b%231%3F.tar"
    assert join_url("https://h/d", "index/keys.npy") == "https://h/d/index/keys.npy"
    assert join_url("s3://b/d", "a b#1.tar") == "s3://b/d/a b#1.tar"


@pytest.mark.parametrize(
    "name",
    [
        "pipe:curl http://h/secret.tar",
        "file:///etc/secret.tar",
        "simplecache::s3://b/secret.tar",
        "https://h/secret.tar::zip://x",
        "ftp://h/secret.tar",
        "s3:/b/secret.tar",
        "s3:secret",
        "reference::secret",
        "local:secret",
        "git://secret@h/x.tar",
    ],
)
def test_other_sources_are_refused_by_name_alone(name: str) -> None:
    assert is_url(name)
    with pytest.raises(UserError) as caught:
        check_url(name)
    message = str(caught.value)
    assert "no source that is read; name local folders or files, or http://" in message
    assert "secret" not in message and all(f"{scheme}://" in message for scheme in SCHEMES)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "https://user:secret@host/x.tar",
            "https://host: a user or password in the URL would end up in logs",
        ),
        ("s3://key:secret@bucket/x.tar", "s3://bucket: a user or password"),
        ("https://host/x.tar?X-Amz-Signature=secret", "https://host/x.tar: a query"),
        ("https://host/x.tar#secret", "or fragment"),
        ("https:///x.tar", "malformed"),
        ("https://[host/x.tar", "malformed"),
        ("https://host/a b.tar", "without spaces"),
        ("https://host/a\nb.tar", "without spaces"),
        ("s3://bucket/../x.tar", "'..' in a URL"),
        ("https://host/x.tar.gz", "neither a folder nor a .tar file; upload"),
        ("https://host/x.tgz", "neither a folder nor a .tar file"),
        ("https://host/a%2Fb.tar", "holds slashes"),
        ("https://host/a%0Ab.tar", "holds slashes or what is no text"),
        ("https://host/a%FFb.tar", "what is no text"),
    ],
)
def test_what_a_url_may_not_hold(url: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        split_url(url)
    assert (
        words in str(caught.value)
        and "secret" not in str(caught.value)
        and "\n" not in str(caught.value)
    )


def test_local_names_stay_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(is_url(name) for name in ("a/b.tar", "/a//b", "C:x", "run 1: train", "shards@2"))
    monkeypatch.chdir(tmp_path)
    os.mkdir("data:v2")
    assert not is_url("data:v2") and is_url("data:v3")
