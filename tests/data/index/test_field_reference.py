"""What a config calls a field of samples that have several of a kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from indexed import picture, sound
from tars import write_tar

from mmscale.config import MediaConfig, check_field
from mmscale.data.index.build_index import build_index
from mmscale.data.index.dataset import Dataset
from mmscale.data.index.field_reference import fields_meant, json_place
from mmscale.data.planning.array_cache import ArrayCache
from mmscale.data.planning.token_counts import keep_token_counts, named_documents
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

FIELDS = ["0.png", "image.jpg", "info.json", "jpg", "json", "left.jpg", "left.png", "png", "wav"]


@pytest.mark.parametrize(
    ("reference", "meant"),
    [
        ("image", ["png", "jpg", "0.png", "image.jpg", "left.jpg", "left.png"]),
        ("image.jpg", ["jpg"]),
        ("image.JPG", ["jpg"]),
        ("image.png", ["png"]),
        ("image.left", ["left.png", "left.jpg"]),
        ("image.Left.jpg", ["left.jpg"]),
        ("image.image", ["image.jpg"]),
        ("image.wav", []),
        ("audio.wav", ["wav"]),
        ("image.webp", []),
        ("json.label", ["json"]),
        ("json.info.label", ["info.json"]),
        ("json.INFO.label", ["info.json"]),
        ("json.info", ["json"]),
    ],
)
def test_a_plain_ending_can_be_named(reference: str, meant: list[str]) -> None:
    check_field("here", reference)
    assert fields_meant(reference, FIELDS) == meant


def test_a_name_comes_before_an_ending() -> None:
    assert fields_meant("image.jpg", ["jpg", "jpg.png"]) == ["jpg.png"]


def test_paths_in_named_json() -> None:
    assert json_place("info.Label.0", FIELDS) == ("info.json", "Label.0")
    assert json_place("other.label", FIELDS) == ("json", "other.label")
    assert json_place("info", ["info.json"]) == ("info.json", "")
    assert json_place("a.b.c", ["a.json", "a.b.json", "json"]) == ("a.b.json", "c")


def test_they_are_read(tmp_path: Path) -> None:
    members = {
        "1.JPG": picture(3, 4, "JPEG"),
        "1.Png": picture(5, 6),
        "1.WAV": sound(1000, 8000),
        "1.json": json.dumps({"info": "scalar", "label": "plain"}).encode(),
        "1.INFO.json": json.dumps({"label": "named"}).encode(),
    }
    write_tar(tmp_path / "s.tar", members)
    build_index(tmp_path, MediaConfig(), progress=False)
    data = Dataset.open([str(tmp_path)])
    one = np.array([0])
    assert data.read("image.jpg", 0) == members["1.JPG"]
    assert data.read("image.PNG", 0) == members["1.Png"] == data.read("image", 0)
    assert data.facts("image.jpg", one)[["a", "b"]].tolist() == [(3, 4)]
    wanted = {"json.label": "plain", "json.info.label": "named", "json.info": "scalar"}
    for reference, text in wanted.items():
        assert data.text(reference, 0) == text
        assert list(data.texts(reference, one)) == [text]  # from the index, which keeps it
    with pytest.raises(
        UserError,
        match=r"no sample has field 'image\.left'; fields there are: info\.json, jpg, json, png, "
        r"wav \(in a config: image\.jpg, image\.png\)",
    ):
        data.check_field("image.left")


def test_a_document_of_one_value(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {"1.class.json": b'"cat"', "2.class.json": b'["cat"]'})
    build_index(tmp_path, MediaConfig(), progress=False)
    data = Dataset.open([str(tmp_path)])
    assert [data.text("json.class", n) for n in range(2)] == ["cat", None]
    assert [data.text("json.class.0", n) for n in range(2)] == [None, "cat"]


def test_what_was_kept_of_the_plain_json_is_not_taken_for_the_named_one(tmp_path: Path) -> None:
    """Counts of tokens are kept under names that tell them apart, by digest and document."""
    write_tar(tmp_path / "s.tar", {"1.json": b'{"info": {"n": "x"}}', "1.info.json": b'{"n": 1}'})
    manifests = [build_index(tmp_path, MediaConfig(), progress=False)]
    assert named_documents(manifests, ["json.info.n", "text", "image"]) == ["info.json"]
    assert named_documents(manifests, ["json.other.n", "json.info", "cls"]) == []
    data, tokenizer = Dataset(manifests), Tokenizer.train(["0 1 2 x"] * 3, 300)
    (path,) = keep_token_counts(manifests[0], tokenizer, ["json.info.n"])
    before = ArrayCache.name("tokens", tokenizer.digest, "json.info.n", *data.digests)
    assert path != before and (tmp_path / "index" / path).is_file()
