"""Rows of Python become samples: dicts, pictures and sounds as objects, data sets as they are."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from indexed import picture, sound
from packed_sets import labels, read_shards
from PIL import Image

import mmscale
from mmscale.errors import UserError

Samples = dict[str, dict[str, bytes]]


def packed(source: Any, out: Path, **words: Any) -> dict[str, Samples]:
    manifests = mmscale.pack(source, out, progress=False, **words)
    for name, manifest in manifests.items():
        assert manifest.root == out / name and manifest.problem_count == 0
    assert not (out / ".rows").exists()
    return {name: read_shards(out / name) for name in manifests}


def heard(data: bytes) -> tuple[np.ndarray, int]:
    return soundfile.read(io.BytesIO(data), dtype="float64")


def rows(count: int):
    for number in range(count):
        yield {"image": picture(number + 1, 2), "text": f"text {number}", "n": number}


def test_a_generator_of_dicts(tmp_path: Path) -> None:
    (samples,) = packed(rows(7), tmp_path / "out").values()
    assert samples == {
        f"{number + 1:08d}": {
            "png": picture(number + 1, 2),
            "txt": f"text {number}".encode(),
            "json": json.dumps({"n": number}).encode(),
        }
        for number in range(7)
    }
    assert list(samples) != sorted(samples)  # shuffled, as of a folder


def test_the_shards_are_those_of_a_table(tmp_path: Path) -> None:
    lines = [{"key": f"k{n}", "text": f"text {n}", "n": n} for n in range(9)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, source in (
        ("a", lines),
        ("b", tmp_path / "t.jsonl"),
        ("c", str(tmp_path / "t.jsonl")),
    ):
        packed(source, tmp_path / name, samples_per_shard=4)
    shards = [
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.tar")} for name in "abc"
    ]
    assert shards[0] == shards[1] == shards[2] and len(shards[0]) == 3


def test_workers_write_the_same_shards(tmp_path: Path) -> None:
    for workers in (1, 2):
        packed(rows(9), tmp_path / f"{workers}", workers=workers, samples_per_shard=2)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.tar")} for name in "12"
    )
    assert one == two and len(one) == 5


def test_pictures_and_arrays(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    image = Image.fromarray(pixels)
    made = packed(
        [
            {"image": image},
            {"image": pixels},
            {"image": [image, pixels]},
            {"text": np.float32(0.5)},
        ],
        tmp_path / "out",
    )[""]
    for data in (
        made["00000001"]["png"], made["00000002"]["png"],
        made["00000003"]["0.png"], made["00000003"]["1.png"],
    ):  # fmt: skip
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
    assert made["00000004"] == {"txt": b"0.5"}


def test_media_under_other_names(tmp_path: Path) -> None:
    source = [{"img": Image.new("L", (2, 2)), "Depth map": picture(1, 1), "note": "a"}]
    fields = packed(source, tmp_path / "out")[""]["00000001"]
    assert fields.keys() == {"png", "depth_map.png", "json"}
    assert fields["depth_map.png"] == picture(1, 1) and fields["json"] == b'{"note": "a"}'


@pytest.mark.parametrize(
    ("scale", "dtype", "ending"),
    [(15, np.float64, "flac"), (15, np.float32, "flac"), (23, np.float64, "flac"),
     (40, np.float64, "wav"), (None, np.float32, "wav"), (None, np.int16, "flac")],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 2])
def test_sounds_are_kept_exactly(
    tmp_path: Path, scale: int | None, dtype: Any, ending: str, channels: int
) -> None:
    draws = np.random.default_rng(0)
    if dtype == np.int16:
        samples = draws.integers(-(2**15), 2**15, (100, channels)).astype(np.int16)
        expected = samples / 2**15
    else:
        samples = draws.uniform(-0.9, 0.9, (100, channels))
        if scale is not None:
            samples = np.rint(samples * 2**scale) / 2**scale
        expected = samples = samples.astype(dtype)
    if channels == 1:
        samples, expected = samples[:, 0], expected[:, 0]
    row = {"audio": {"array": samples, "sampling_rate": 8000, "path": None}}
    fields = packed([row], tmp_path / "out")[""]["00000001"]
    assert list(fields) == [ending]
    values, rate = heard(fields[ending])
    assert rate == 8000 and np.array_equal(values, expected)


def test_splits_by_a_dict_and_merged(tmp_path: Path) -> None:
    splits = {"train": list(rows(3)), "test": list(rows(2))}
    sets = packed(splits, tmp_path / "out")
    assert {name: len(samples) for name, samples in sets.items()} == {"train": 3, "test": 2}
    merged = packed(splits, tmp_path / "merged", merge_splits=True)[""]
    assert merged["train/00000003"] == sets["train"]["00000003"] and len(merged) == 5
    assert packed(splits, tmp_path / "one", split="test") == {"": sets["test"]}


def test_columns_and_bad_rows_are_named(tmp_path: Path) -> None:
    row = {"photo": picture(1, 1), "class": "cat"}
    sets = packed([row], tmp_path / "out", image="photo", label="class")
    assert sets[""] == {"00000001": {"png": picture(1, 1), "json": b'{"label": "cat"}'}}
    good = {"text": "a"}
    for source, words in (
        ([good, 3], "row 2: int, not a dict"),
        ([good, {"image": b"what"}], "row 2: image of 4 bytes that begin with"),
        ([good, {"image": "no.png"}], "row 2: image 'no.png': no such file"),
        ([{**good, "key": "k"}] * 2, "row 2: key 'k' is also that of row 1"),
        ([{**good, "split": "train"}], "row 1: has a column split; give a dict"),
        ([{"audio": {"array": [[[1.0]]], "sampling_rate": 8}}], "row 1: audio: a sound of shape"),
        ([{"image": {"bytes": None, "path": "/no.png"}}], "row 1: image: /no.png: cannot be read"),
        ([], "the rows: there are none"),
    ):
        with pytest.raises(UserError, match=words):
            packed(source, tmp_path / "bad")
        assert not (tmp_path / "bad").exists()


def test_what_may_surprise_is_told_and_strict_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = [{"text": "a", "label": "nan"}]
    with pytest.raises(UserError, match=r"^--strict: 1 classes that are hardly meant"):
        packed(source, tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists()
    packed(source, tmp_path / "out")
    assert "1 classes that are hardly meant as such ('nan')" in capsys.readouterr().err


def hugging_face(datasets: Any, folder: Path) -> Any:
    """A `Dataset` of pictures in files and in bytes, with class labels."""
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "depth": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
        }
    )
    found = []
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(picture(number + 1, 3, "JPEG"))
        found.append(
            {
                "img": str(folder / f"{number}.jpg"),
                "depth": {"bytes": picture(number + 1, 9), "path": None},
                "label": number % 2,
                "text": f"text {number}",
            }
        )
    return datasets.Dataset.from_list(found, features=features)


@pytest.mark.parametrize("kind", ["Dataset", "IterableDataset", "DatasetDict", "formatted"])
def test_data_sets_of_hugging_face_as_they_are(tmp_path: Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    made = hugging_face(datasets, tmp_path)
    name = "train" if kind == "DatasetDict" else ""
    given = {
        "Dataset": made,
        "IterableDataset": made.to_iterable_dataset(),
        "formatted": made.with_format("numpy"),
        "DatasetDict": datasets.DatasetDict({"train": made}),
    }[kind]
    sets = packed(given, tmp_path / "out")
    assert sets == {
        name: {
            f"{number + 1:08d}": {
                "jpg": (tmp_path / f"{number}.jpg").read_bytes(),  # as it came, not decoded
                "depth.png": picture(number + 1, 9),
                "txt": f"text {number}".encode(),
                "cls": str(number % 2).encode(),
                "json": json.dumps({"label": ["cat", "dog"][number % 2]}).encode(),
            }
            for number in range(4)
        }
    }
    assert set(labels(sets[name]).values()) == {"cat", "dog"}


def test_sounds_of_hugging_face_are_stored_as_they_came(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    plain = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    found = [{"audio": {"bytes": sound(100, 8000, "FLAC"), "path": None}}]
    made = datasets.Dataset.from_list(found, features=datasets.Features({"audio": plain}))
    made = made.cast(datasets.Features({"audio": datasets.Audio(sampling_rate=16_000)}))
    assert packed(made, tmp_path / "out") == {"": {"00000001": {"flac": sound(100, 8000, "FLAC")}}}


def test_importing_the_package_stays_light() -> None:
    script = (
        "import sys, mmscale; mmscale.pack;"
        "print(sorted({'torch', 'numpy', 'pyarrow', 'datasets', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
