"""An index pass ends with everything that it did not simply take; --strict refuses it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from indexed import picture
from servers import serve
from tars import write_tar

from mmscale.cli import main
from mmscale.config import MediaConfig
from mmscale.data.account import Account
from mmscale.data.index import set_notes
from mmscale.data.index.build_index import IndexPass, build_index, index_sources
from mmscale.data.index.dataset import Dataset
from mmscale.data.index.index_files import identity
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.verify_shards import verify_shards
from mmscale.data.worker_pool import WorkerPool
from mmscale.errors import UserError

MEDIA = MediaConfig()
PICTURE = picture(4, 4)
PLAIN = {"1.png": PICTURE, "1.cls": b"cat", "2.png": PICTURE, "2.cls": b"dog"}


def index(folder: Path, **how: Any) -> Manifest:
    return build_index(folder, MEDIA, progress=False, how=IndexPass(**how))


def classes(*values: bytes) -> dict[str, bytes]:
    return {f"c{number}.cls": value for number, value in enumerate(values)}


JSON = {
    "j0.json": b'{"label": "nan"}',
    "j1.json": b'{"n": 1, "class": NaN}',
    "j2.json": b'{"label": "\\ufeffcat"}',
    "j3.json": b'{"label": 7, "name": "nan", "labels": "none of these"}',
}
# What stands in a shard beside the plain samples, and the line that names it.
IN_A_SHARD: list[tuple[dict[str, bytes], list[str]]] = [
    (
        {"3.npy": b"1", "3.png": PICTURE, "4.npy": b"2", "4.png": PICTURE, "5.MP4": b"3"},
        ["3 members with endings that nothing reads (s.tar: 3.npy, s.tar: 5.MP4, …); rename"],
    ),
    (
        {"README": b"x", ".DS_Store": b"y", "__meta__": b"z"},
        ["2 hidden members, and members without an ending (s.tar: README, s.tar: .DS_Store); "],
    ),
    (
        {"3.png": b"none", "3.cls": b"cat"},
        ["1 samples left out because a member cannot be used (s.tar: 3: png: not a picture"],
    ),
    (
        {"v.1.png": PICTURE, "v.2.png": PICTURE},
        ["2 samples with a dot in their key, which webdataset would read as fields of fewer"],
    ),
    (
        {"mr.smith.png": PICTURE, "mr.jones.png": PICTURE},
        ["2 files that a dot in their name makes a field that hardly another sample has (s.tar: "],
    ),
    (
        classes(b"", b"nan", b"None", b"<NA>"),
        ['4 classes that look like a missing value ("", "nan", "None") (s.tar: c0.cls, '],
    ),
    (
        classes(b"7", b" -1.0\n", b"1e5", b"7 cats", b"7th"),
        ["3 classes that look like numbers (s.tar: c0.cls: 7, s.tar: c1.cls: -1.0, "],
    ),
    (
        classes("\ufeff0".encode(), "\ufeffcat".encode()),
        ["2 classes that begin with a byte-order mark (\\ufeff) (s.tar: c0.cls, s.tar: c1.cls); "],
    ),
    (
        JSON,
        [
            '2 classes that look like a missing value ("", "nan", "None") (s.tar: j0.json, ',
            "1 classes that begin with a byte-order mark (\\ufeff) (s.tar: j2.json); ",
        ],
    ),
]


@pytest.mark.parametrize(("members", "lines"), IN_A_SHARD)
def test_what_is_odd_in_a_shard_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], members: dict[str, bytes], lines: list[str]
) -> None:
    write_tar(tmp_path / "s.tar", PLAIN)
    assert index(tmp_path, strict=True).account.lines() == []
    before = (tmp_path / "index" / "manifest.json").read_bytes()
    write_tar(tmp_path / "s.tar", PLAIN | members)
    with pytest.raises(UserError, match="--strict: "):
        index(tmp_path, strict=True)
    assert (tmp_path / "index" / "manifest.json").read_bytes() == before  # it is not replaced
    capsys.readouterr()
    main(["data", "index", str(tmp_path), "--workers", "1"])
    told = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    accounted = index(tmp_path).account.lines()
    if "3.png" in members and b"none" in members.values():  # NaN in JSON may be a problem, too
        told = told[1:]  # the problem itself
    assert [line.removeprefix("mmscale: warning: ") for line in told] == accounted
    assert len(accounted) == len(lines)
    for line, start in zip(accounted, lines, strict=True):
        assert line.startswith(start)
    with pytest.raises(SystemExit, match="2"):
        main(["data", "index", str(tmp_path), "--strict", "--workers", "1"])
    assert f"mmscale: error: --strict: {accounted[-1]}" in capsys.readouterr().err


def test_what_lies_beside_and_below_is_told(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", PLAIN)
    for name in ("s.parquet", "s_stats.json", "metadata.csv", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "more" / "a").mkdir(parents=True)
    for name in ("more/t.tar", "more/a/u.TAR", "more/note.txt"):
        write_tar(tmp_path / name, PLAIN)
    assert index(tmp_path).account.lines() == [
        "3 files beside the shards that are not used (metadata.csv, s.parquet, s_stats.json); "
        f"{set_notes.BESIDE.remedy}",
        "2 shards in sub-folders that are not taken (more/a/u.TAR, more/t.tar); "
        f"{set_notes.BELOW.remedy}",
    ]
    with pytest.raises(UserError, match="--strict: 2 shards in sub-folders"):
        index(tmp_path, strict=True)


def test_shards_in_sub_folders_alone_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "s.tar", PLAIN)
    with pytest.raises(
        UserError, match=rf"no \.tar shards but in sub-folders, such as {tmp_path}/a; .*--recursive"
    ):
        index(tmp_path)


def test_shards_in_sub_folders_are_taken_when_asked(tmp_path: Path) -> None:
    for name in ("b/s.tar", "a-b.tar", "a/x/s.tar", ".hidden/s.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(tmp_path / name, {f"{name[0]}.txt": name.encode()})
    (tmp_path / "b" / "s.csv").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    manifest = index(tmp_path, recursive=True)
    assert manifest.shards == ["a-b.tar", "a/x/s.tar", "b/s.tar"]
    assert (
        manifest.account.lines()
        == [
            f"1 files beside the shards that are not used (b/s.csv); {set_notes.BESIDE.remedy}",
            "1 keys that are equal in several shards (a in a-b.tar and a/x/s.tar); "
            f"{set_notes.SAME_KEYS.remedy}",
        ][::-1]
    )
    data = Dataset.open([str(tmp_path)])
    assert [data.text("text", n) for n in range(3)] == manifest.shards
    assert [data.shard(n) for n in range(3)] == manifest.shards
    assert verify_shards(tmp_path) == []
    assert index(tmp_path).digest == manifest.digest  # it goes on as it was made
    write_tar(tmp_path / "b" / "t.tar", {"t.txt": b"t"})
    with pytest.raises(UserError, match=rf"{tmp_path}/b/t\.tar: not in the index"):
        Manifest.open(tmp_path)
    assert verify_shards(tmp_path) == [f"{tmp_path}/b/t.tar: not in the index"]
    assert index(tmp_path).shards[-1] == "b/t.tar"
    (tmp_path / "a" / "x" / "s.tar").unlink()
    with pytest.raises(UserError, match=rf"{tmp_path}/a/x/s\.tar: missing"):
        Manifest.open(tmp_path)


@pytest.mark.parametrize("name", ["/a.tar", "a//b.tar", "a/../../b.tar", "./a.tar", "a/.tar/."])
def test_a_name_never_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / "s.tar", PLAIN)
    (shard,) = index(tmp_path).entries
    path = tmp_path / "index" / "manifest.json"
    other = replace(shard, name=name)
    changes = {"shards": [other.facts()], "digest": identity([other])}  # consistent, but hostile
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match="damaged"):
        Manifest.load(tmp_path)


def test_upper_case_shards_are_taken(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.TAR", PLAIN)
    write_tar(tmp_path / "t.tar", {"9.png": PICTURE})
    manifest = index(tmp_path, strict=True)
    assert manifest.shards == ["s.TAR", "t.tar"] and len(Manifest.open(tmp_path)) == 3
    (part,) = set_of([str(tmp_path / "s.TAR")])
    assert len(part) == 2
    write_tar(tmp_path / "u.Tar", PLAIN)
    with pytest.raises(UserError, match=r"u\.Tar: not in the index"):
        Manifest.open(tmp_path)


def set_of(names: list[str]) -> list[Manifest]:
    from mmscale.config import CacheConfig
    from mmscale.data.index.manifest import open_manifests

    return open_manifests(names, CacheConfig())


def numbered(folder: Path, shards: int, samples: int) -> Path:
    """As img2dataset does: each shard's keys begin at 0."""
    for shard in range(shards):
        members = {f"{number:05d}.png": PICTURE for number in range(samples)}
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def test_equal_keys_are_told(tmp_path: Path) -> None:
    (line,) = index(numbered(tmp_path, 3, 4)).account.lines()
    assert line == (
        "4 keys that are equal in several shards (00000 in 00000.tar and 00001.tar, 00001 in "
        "00000.tar and 00001.tar, 00002 in 00000.tar and 00001.tar, …); their samples are "
        "unrelated; `match: key` in a task or score makes them belong together"
    )


def test_of_many_keys_some_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_notes, "_MOST_KEYS", 64)
    write_tar(tmp_path / "a.tar", {f"{number}.txt": b"a" for number in range(600)})
    write_tar(tmp_path / "b.tar", {f"{number}.txt": b"b" for number in range(300, 900)})
    (line,) = index(tmp_path).account.lines()
    count, what, *_ = line.split(" ", 1)
    assert what.startswith("keys (estimated) that are equal in several shards")
    assert 150 < int(count) < 600  # 300 are


def test_a_field_that_many_samples_have_is_one(tmp_path: Path) -> None:
    named = {f"{n}.{side}.png": PICTURE for n in range(3) for side in ("left", "right")}
    several = {f"m{n}.{place}.png": PICTURE for n in range(3) for place in range(n + 1)}
    write_tar(tmp_path / "s.tar", named | several)
    assert index(tmp_path, strict=True).account.lines() == []


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Shards with something to tell in each."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for number in range(4):
        members = {
            f"k{number}.05.png": PICTURE, f"k{number}.06.png": PICTURE, "same.png": PICTURE,
            f"n{number}.cls": b"7", f"u{number}.npy": b"1", f"b{number}.png": b"",
            f"r{number}.one{number}.png": PICTURE,
        }  # fmt: skip
        write_tar(folder / f"{number}.tar", members)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "index").iterdir())}


def test_the_account_is_the_same_for_any_workers(odd: Path) -> None:
    alone = index(odd, every=True).account.lines()
    kept = files(odd)
    assert [line.split(" ", 1)[0] for line in alone] == ["8", "4", "4", "4", "4", "1"]
    with WorkerPool(2) as pool:
        assert index(odd, every=True, pool=pool).account.lines() == alone
    assert files(odd) == kept


def test_shards_that_are_not_read_again_are_accounted_for(odd: Path) -> None:
    whole = index(odd, every=True).account.lines()
    kept = files(odd)
    last = (odd / "3.tar").rename(odd.parent / "3.tar")
    fewer = index(odd).account.lines()
    assert len(fewer) == len(whole) and fewer != whole
    last.rename(odd / "3.tar")
    assert index(odd).account.lines() == whole
    assert files(odd) == kept
    with pytest.raises(UserError, match="--strict: "):
        index(odd, strict=True)  # nothing is read, and yet all is known


def test_an_index_without_its_notes_is_made_anew(odd: Path) -> None:
    whole = index(odd).account.lines()
    path = odd / "index" / "stamps.json"
    tree = json.loads(path.read_text())
    del tree["accounts"]
    path.write_text(json.dumps(tree))
    assert index(odd).account.lines() == whole


def test_a_remote_set_has_the_same_account(odd: Path, tmp_path: Path) -> None:
    here = index(odd)
    names = [path.name for path in sorted(odd.glob("*.tar"))]
    with serve(odd) as server:
        sources = [f"{server.url}/{name}" for name in names]
        remote = index_sources(sources, tmp_path / "remote", MEDIA, progress=False)
    assert remote.account.lines() == here.account.lines() and remote.digest == here.digest
    assert remote.key_dots == "auto" and samples_of(remote) == samples_of(here)


def samples_of(manifest: Manifest) -> list[str]:
    return [manifest.key(row) for row in range(len(manifest))]


def test_an_asked_rule_is_no_surprise(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {"mr.smith.png": PICTURE, "mr.jones.png": PICTURE})
    assert len(index(tmp_path).account.lines()) == 1
    for rule, keys in (("first", ["mr"]), ("last", ["mr.smith", "mr.jones"])):
        manifest = index(tmp_path, key_dots=rule, strict=True)
        assert samples_of(manifest) == keys and manifest.account.lines() == []
    write_tar(tmp_path / "s.tar", {"1.05.png": PICTURE, "1.06.png": PICTURE})
    assert samples_of(index(tmp_path, key_dots="auto", strict=True)) == ["1.05", "1.06"]
    assert len(index(tmp_path).account.lines()) == 1  # the index has the rule, nobody named it


def test_accounts_of_shards_do_not_share_their_counts(odd: Path) -> None:
    """Adding one account to another leaves the first as it was: it is kept on its own."""
    index(odd)
    tree = json.loads((odd / "index" / "stamps.json").read_text())
    rows = [dict((row[0], row[2]) for row in rows) for rows in tree["accounts"].values()]
    assert all(row == rows[0] for row in rows) and len(rows) == 4
    assert Account.from_json(tree["accounts"]["0.tar"]).lines()
