"""Lists and patterns stand for the names they say, local or remote, each once. Braces:
test_manifest.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mmscale.data.storage.shard_patterns import expand, group_by_folder
from mmscale.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two shards in ``data/``, named from the folder above."""
    (tmp_path / "data").mkdir()
    for number in range(2):
        (tmp_path / "data" / f"{number}.tar").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*patterns: str) -> str:
    with pytest.raises(UserError) as caught:
        group_by_folder(expand(list(patterns)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_braces_in_urls() -> None:
    assert expand(["s3://b/{train,val}/{08..10}.tar"]) == [
        f"s3://b/{part}/{number:02d}.tar" for part in ("train", "val") for number in (8, 9, 10)
    ]


def test_a_list_in_a_file(folder: Path) -> None:
    (folder / "lists").mkdir()
    (folder / "lists" / "all.txt").write_text(
        "# ours\n../data/{0,1}.tar\n\n  https://h/d/{a,b}.tar  \r\n/abs/x.tar\n", encoding="utf-8"
    )
    assert expand(["first.tar", "@lists/all.txt"]) == [
        "first.tar",
        "lists/../data/0.tar",
        "lists/../data/1.tar",
        "https://h/d/a.tar",
        "https://h/d/b.tar",
        "/abs/x.tar",
    ]


def test_a_file_named_like_a_list_is_itself(folder: Path) -> None:
    (folder / "@data").mkdir()
    assert expand(["@data"]) == ["@data"]


def test_lists_that_cannot_be_read(folder: Path) -> None:
    assert (
        refused("@gone.txt")
        == "@gone.txt: the list cannot be read (No such file or directory); check the path"
    )
    assert refused("@data").startswith("@data: the list cannot be read (Is a directory)")
    for content, words in [
        (b"\n# nothing\n", "the list is empty"),
        (b"\xff\xfe", "not UTF-8"),
        (b"@other.txt\n", "line 1 names another list"),
        (b"https://u:secret@h/{x.tar\n", "a user or password"),
        (b"pipe:cat {secret}\n", "no source that is read"),
    ]:
        (folder / "list.txt").write_bytes(content)
        assert words in (message := refused("@list.txt")) and "secret" not in message
    assert refused("@https://u:secret@h/list.txt") == (
        "@URL: a list is a local file; download it and name that"
    )


def test_an_oversize_list_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmscale.data.storage.shard_patterns._MAX_LIST_BYTES", 10)
    (folder / "list.txt").write_text("data/0.tar\n")
    assert "the list is over 10 bytes" in refused("@list.txt")


def test_folders_local_and_remote_in_order_of_first_mention(folder: Path) -> None:
    names = ["s3://b/d/1.tar", "data/1.tar", "https://h/", "s3://b/d/0.tar", "data/0.tar"]
    assert group_by_folder(names) == [
        ("s3://b/d", ["1.tar", "0.tar"]),
        (Path("data"), ["1.tar", "0.tar"]),
        ("https://h", None),
    ]


def test_named_twice(folder: Path) -> None:
    for names in (
        ["data", "data/"],
        ["data", "data/0.tar"],
        ["data/0.tar", "./data/0.tar"],
        ["s3://b/d", "s3://b/d/"],
        ["s3://b/d/", "s3://b/d/x.tar"],
        ["https://h/a%20b.tar", "HTTPS://h/a%20b.tar"],
    ):
        assert refused(*names).startswith(f"{names[1]}: named twice")


def test_names_that_are_nothing(folder: Path) -> None:
    assert "shards: empty" in refused()
    assert refused("gone") == "gone: neither a folder nor a .tar file; check the name"
    assert refused("x" * 5000).endswith("neither a folder nor a .tar file; check the name")
    assert refused("data/2.tar") == "data/2.tar: no such shard; check the path"
