"""Which dot ends a key, and which members of a shard are one sample."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import ROOT
from indexed import picture
from tars import write_tar

from mmscale.config import MediaConfig
from mmscale.data.index.build_index import IndexPass, build_index
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.sample_keys import check_key_dots, split_name
from mmscale.data.index.tar_headers import scan
from mmscale.data.index.verify_shards import verify_shards
from mmscale.errors import UserError

MEDIA = MediaConfig()


def content(name: str) -> bytes:
    if name.lower().endswith((".png", ".jpg")):
        return picture(4, 4)
    return b"{}" if name.endswith(".json") else b"text"


def shard(folder: Path, *names: str, name: str = "s.tar") -> Path:
    folder.mkdir(exist_ok=True)
    write_tar(folder / name, {member: content(member) for member in names})
    return folder


def index(folder: Path, key_dots: str | None = None) -> Manifest:
    return build_index(folder, MEDIA, progress=False, how=IndexPass(key_dots=key_dots))


def samples(manifest: Manifest) -> dict[str, list[str]]:
    """Fields by key."""
    columns = {field: manifest.column(field)["offset"] for field in manifest.fields}
    return {
        manifest.key(row): [field for field in columns if columns[field][row]]
        for row in range(len(manifest))
    }


NAME = "d.1/a.b.C.PNG"


@pytest.mark.parametrize(
    ("rule", "split"),
    [
        ("first", ("d.1/a", "b.c.png")),
        ("auto", ("d.1/a", "b.c.png")),
        ("1", ("d.1/a.b", "c.png")),
        ("2", ("d.1/a.b.C", "png")),
        ("7", ("d.1/a.b.C", "png")),
        ("last", ("d.1/a.b.C", "png")),
    ],
)
def test_rules(rule: str, split: tuple[str, str]) -> None:
    assert split_name(NAME, rule) == split
    for name in ("a", ".hidden.png", "d/.x", "__meta__/a.json", "a."):
        assert split_name(name, rule) is None


DOCS = (ROOT / "docs" / "formats.md").read_text("utf-8")


def test_the_rules_of_the_docs() -> None:
    rows = re.findall(r"^\| (`.*) \| `(d/.*)` \| `(.*)` \|$", DOCS, re.M)
    assert len(rows) == 4
    for rule, key, field in rows:
        assert split_name("d/22.05.left.png", rule.split("`")[1]) == (key, field)


def test_the_examples_of_the_docs(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (`[^|]*`) \| (`[^|]*) \|$", DOCS.split("samples by `auto`")[1], re.M)
    assert len(rows[:6]) == 6
    for number, (members, keys) in enumerate(rows[:6]):
        folder = shard(tmp_path / str(number), *re.findall("`([^`]*)`", members))
        stated = re.findall("`([^`]*)`", re.split("[,;]", keys)[0])
        assert list(samples(index(folder))) == stated


def test_a_rule_that_is_none() -> None:
    assert check_key_dots("0") == "first" and check_key_dots("03") == "3"
    for text in ("-1", "1.5", "", "second", "²"):
        with pytest.raises(UserError, match=r"--key-dots .*: unknown; write auto, first, last, or"):
            check_key_dots(text)


def test_six_pictures_are_six_samples(tmp_path: Path) -> None:
    names = [f"22.{number:02d}.png" for number in range(5, 11)]
    manifest = index(shard(tmp_path, *names))
    assert samples(manifest) == {name.removesuffix(".png"): ["png"] for name in names}
    assert manifest.key_dots == "auto" and manifest.entries[0].key_dots == "auto"
    assert verify_shards(tmp_path) == []
    (line,) = manifest.account.lines()
    assert line.startswith("6 samples with a dot in their key") and "--key-dots first" in line
    assert "s.tar: 22.05, s.tar: 22.06, s.tar: 22.07, …" in line
    merged = index(tmp_path, "first")
    assert samples(merged) == {"22": [name.removeprefix("22.") for name in names]}
    assert merged.key_dots == "first" and merged.account.lines() == []  # it was asked for
    assert verify_shards(tmp_path) == []


ONE = [
    ("a.image.jpg", "a.mask.png", "a.json"),
    ("a.0.jpg", "a.1.jpg", "a.0.txt", "a.1.txt", "a.json"),
    ("a.1.jpg", "a.0.jpg"),
    ("a.0.jpg",),
    ("a.jpg", "a.0.jpg"),
    ("a.left.png", "a.right.png"),
    ("a.1.jpg", "a.2.jpg", "a.txt"),  # a text of both
    ("a.2d.npy", "a.jpg"),  # an array is no sample of its own
    ("a.05.txt", "a.06.txt"),  # texts are not pictures
    ("a.05.png", "a.depth.png"),
    ("a.png", "a.txt", "a.cls"),
]
SEVERAL = [
    (("v1.1.png", "v1.2.png", "v1.png"), {"v1.1": ["png"], "v1.2": ["png"], "v1": ["png"]}),
    (("1.05.png", "1.05.txt", "1.06.png"), {"1.05": ["png", "txt"], "1.06": ["png"]}),
    (("Mr. A.jpg", "Mr. B.jpg"), {"Mr. A": ["jpg"], "Mr. B": ["jpg"]}),
    (("3.25.image.jpg", "3.25.mask.png"), {"3.25": ["image.jpg", "mask.png"]}),
    (("2024.01.31.PNG",), {"2024.01.31": ["png"]}),
    (("a.000.jpg", "a.001.jpg"), {"a.000": ["jpg"], "a.001": ["jpg"]}),
    (("d.5/a.7.png", "d.5/b.7.png"), {"d.5/a.7": ["png"], "d.5/b.7": ["png"]}),
    (("Müller.ä.png", "Müller.ö.png"), {"Müller.ä": ["png"], "Müller.ö": ["png"]}),
]


@pytest.mark.parametrize("names", ONE, ids=" ".join)
def test_auto_keeps_what_is_one_sample(tmp_path: Path, names: tuple[str, ...]) -> None:
    manifest = index(shard(tmp_path, *names))
    assert samples(manifest) == {"a": sorted(name.removeprefix("a.") for name in names)}
    assert manifest.entries[0].key_dots == ""
    assert verify_shards(tmp_path) == []
    assert manifest.digest == index(tmp_path, "first").digest  # a rule that changes no key


@pytest.mark.parametrize(("names", "expected"), SEVERAL)
def test_auto_tells_samples_apart(
    tmp_path: Path, names: tuple[str, ...], expected: dict[str, list[str]]
) -> None:
    auto = index(shard(tmp_path, *names))
    assert samples(auto) == expected and verify_shards(tmp_path) == []
    assert auto.entries[0].key_dots == "auto"
    if all(name.isascii() and " " not in name for name in names):  # else webdataset's are no fields
        assert auto.digest != index(tmp_path, "first").digest


def test_the_members_of_a_run_may_come_in_any_order(tmp_path: Path) -> None:
    """As an unsorted tar has them: the keys of samples decide, not what they share."""
    names = ["22.05.png", "31.1.png", "22.06.png"]
    assert list(samples(index(shard(tmp_path, *names)))) == ["22.05", "31.1", "22.06"]
    assert verify_shards(tmp_path) == []


@pytest.mark.parametrize(
    ("names", "key"),
    [
        (("1.05.png", "1.06.png", "1.05.txt"), "1.05"),  # within a run
        (("1.05.png", "2.7.png", "1.05.txt"), "1.05"),
        (("1.0.png", "1.1.png", "2.7.png", "1.2.png"), "1"),  # a list that was whole
        (("1.png", "2.png", "1.txt"), "1"),
    ],
)
def test_a_sample_never_comes_in_two_parts(
    tmp_path: Path, names: tuple[str, ...], key: str
) -> None:
    with pytest.raises(UserError, match=rf"s\.tar: byte \d+: key '{key}' appears again after"):
        index(shard(tmp_path, *names))


def test_an_index_goes_on_by_its_rule(tmp_path: Path) -> None:
    index(shard(tmp_path, "22.05.png", "22.06.png"), "last")
    shard(tmp_path, "x.left.png", "x.right.png", name="t.tar")
    grown = index(tmp_path)
    assert list(samples(grown)) == ["22.05", "22.06", "x.left", "x.right"]
    assert [entry.key_dots for entry in grown.entries] == ["last", "last"]
    assert grown.key_dots == "last" and verify_shards(tmp_path) == []


def test_an_index_of_before_is_as_it_was(tmp_path: Path) -> None:
    """It names no rule: its keys are webdataset's, and stay so until another rule is asked for."""
    before = index(shard(tmp_path, "22.05.png", "22.06.png"), "first")
    path = tmp_path / "index" / "manifest.json"
    tree = json.loads(path.read_text())
    assert "key_dots" not in tree["shards"][0]  # as it always was
    path.write_text(json.dumps({name: tree[name] for name in tree if name != "key_dots"}))
    old = Manifest.open(tmp_path)
    assert old.digest == before.digest and old.key_dots == "first" and verify_shards(tmp_path) == []
    again = index(tmp_path)
    assert again.digest == before.digest and list(samples(again)) == ["22"]
    assert "key_dots" not in json.loads(path.read_text())
    (line,) = again.account.lines()  # what would be otherwise is told
    assert line.startswith("2 files that a dot in their name makes a field") and "last" in line
    assert list(samples(index(tmp_path, "auto"))) == ["22.05", "22.06"]


def test_parts_of_a_set_keep_the_rule_in_their_digest(tmp_path: Path) -> None:
    shard(tmp_path, "22.05.png", name="a.tar")
    whole = index(shard(tmp_path, "1.png", name="b.tar"))
    digests = {rule: index(tmp_path, rule).restrict(["a.tar"]).digest for rule in ("auto", "first")}
    assert whole.restrict(["a.tar"]).digest == digests["auto"] != digests["first"]
    assert index(tmp_path, "last").restrict(["b.tar"]).digest == whole.restrict(["b.tar"]).digest


def test_a_damaged_rule_is_damage(tmp_path: Path) -> None:
    index(shard(tmp_path, "1.png"))
    path = tmp_path / "index" / "manifest.json"
    for rule in ("second", 3, None):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"key_dots": rule}))
        with pytest.raises(UserError, match=r"manifest\.json: the index is damaged"):
            Manifest.load(tmp_path)


def test_long_keys_are_scanned_as_they_are(tmp_path: Path) -> None:
    folder = shard(tmp_path, "22.05.png", "22.06.png")
    keys = {
        rule: [member.key for member in scan(folder / "s.tar", rule)] for rule in ("first", "1")
    }
    assert keys == {"first": ["22", "22"], "1": ["22.05", "22.06"]}
