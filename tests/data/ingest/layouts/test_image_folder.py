"""Folders of classes are what torchvision's ImageFolder reads; splits are sets; nothing is lost in
silence.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from indexed import picture, sound
from packed_sets import account_of, labels, packed

from mmscale.data.ingest.pack import pack
from mmscale.errors import UserError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def photo(path: Path, width: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(width, 3))
    return path


def folder_of_classes(root: Path, classes: tuple[str, ...] = ("dog", "cat"), each: int = 3) -> Path:
    for label, name in enumerate(classes):
        for number in range(each):
            photo(root / name / "deep" / f"{number}.png", 10 * label + number + 1)
        photo(root / name / "top.PNG", 10 * label + 9)
    return root


def image_folder(root: Path) -> dict[bytes, str]:
    """Torchvision's rule: classes are the sorted folders of ``root``; every picture below, by its
    ending in any case, is a sample of that class.
    """
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    return {
        Path(folder, name).read_bytes(): label
        for label in classes
        for folder, _, names in sorted(os.walk(root / label, followlinks=True))
        for name in sorted(names)
        if name.lower().endswith(ENDINGS)
    }


def pictures_and_labels(samples: dict[str, dict[str, bytes]]) -> dict[bytes, str]:
    named = labels(samples)
    return {fields["png"]: named[key] for key, fields in samples.items()}


def test_without_splits_it_is_image_folder(tmp_path: Path) -> None:
    root = folder_of_classes(tmp_path / "photos")
    sets = packed(root, tmp_path / "out")
    assert sets.keys() == {""}
    assert pictures_and_labels(sets[""]) == image_folder(root)
    assert len(sets[""]) == 8


def test_every_split_folder_is_an_image_folder_of_its_own(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    folder_of_classes(root / "train")
    folder_of_classes(root / "Val", ("cat", "dog", "emu"), each=1)
    photo(root / "test" / "unlabelled.png")
    sets = packed(root, tmp_path / "out")
    assert sets.keys() == {"train", "Val", "test"}
    for name in ("train", "Val"):
        assert pictures_and_labels(sets[name]) == image_folder(root / name)
    assert labels(sets["test"]) == {"unlabelled": None}  # the split's name is no label
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Val", "test", "train"]


def test_numbers_in_the_name_of_a_split_make_it_no_label(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        photo(tmp_path / "src" / split / "1.png")
    sets = packed(tmp_path / "src", tmp_path / "out")
    assert {name: labels(samples) for name, samples in sets.items()} == {
        "train2017": {"1": None},
        "val2017": {"1": None},
    }


def test_splits_are_merged_or_picked_only_when_asked(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for split in ("train", "test"):
        folder_of_classes(root / split, each=1)
    merged = packed(root, tmp_path / "merged", merge_splits=True)
    assert labels(merged[""])["train/cat/top"] == "cat" and len(merged[""]) == 8
    assert {key.split("/")[0] for key in merged[""]} == {"train", "test"}
    one = packed(root, tmp_path / "one", split="test")
    assert labels(one[""]) == {
        "cat/top": "cat", "dog/top": "dog", "cat/deep/0": "cat", "dog/deep/0": "dog",
    }  # fmt: skip
    with pytest.raises(UserError, match="no split 'val'; its splits: test, train"):
        packed(root, tmp_path / "none", split="val")
    with pytest.raises(UserError, match="--split is for one split, --merge-splits for all"):
        packed(root, tmp_path / "none", split="test", merge_splits=True)


def test_sounds_and_texts_of_one_name_are_one_sample(tmp_path: Path) -> None:
    folder = tmp_path / "clips" / "bird"
    folder.mkdir(parents=True)
    (folder / "a.wav").write_bytes(sound(10, 8000))
    (folder / "a.txt").write_text("a song")
    (folder / "a.json").write_text('{"label": "wren"}')
    sets = packed(tmp_path / "clips", tmp_path / "out")
    assert sets[""]["bird/a"].keys() == {"wav", "txt", "json"}
    assert labels(sets[""]) == {"bird/a": "wren"}


def test_names_with_dots_are_a_sample_each(tmp_path: Path) -> None:
    for second in range(6):
        photo(tmp_path / "src" / "cat" / f"22.{second:02d}.png", second + 1)
    sets = packed(tmp_path / "src", tmp_path / "out")
    assert sets[""].keys() == {f"cat/22_{second:02d}" for second in range(6)}


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (["cat/1.png", "cat/1.heic", "raw.dng"], "2 files with endings that are not read"),
        (["cat/1.png", "labels.csv"], r"1 metadata files not used: tables.*\(labels\.csv\)"),
        (["cat/1.png", "cat/about.json"], r"1 metadata files not used.*\(cat/about\.json\)"),
        (["cat/1.png", "cat/1.jpg"], r"1 samples of several pictures.*\(cat/1\.\{jpg,png\}\)"),
        (["cat/1.png", ".hidden/2.png", "cat/.3.png"], "2 hidden files and folders"),
        (["cat/1.png", "dog/notes.md"], r"1 folders without a sample \(dog\)"),
        (["0/1.png", "1/1.png", "10/1.png"], r"3 classes that look like numbers \('0', '1', '1"),
        (["cat/1.png", "nan/1.png", "None/1.png"], r"2 classes that are hardly.*'None', 'nan'"),
        (["\ufeff0/1.png", "cat/1.png"], r"1 classes that are hardly meant.*\\ufeff0"),
        (["cat/1.png", "train/1.png"], r"1 classes named like a split.*\(train\)"),
        (["images/train/1.png", "images/val/1.png"], "2 folders named like a split inside of"),
        (["cat/1.png", "SOURCE.txt"], r"1 texts alone, each a sample beside.*\(SOURCE\.txt\)"),
        (["train/cat/1.png", "2.png"], r"1 files beside the folders of the splits.*\(2\.png\)"),
    ],
)  # fmt: skip
def test_what_is_not_simply_taken_is_told_and_strict_refuses(
    tmp_path: Path, files: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        photo(tmp_path / "src" / name)
        if name.endswith(".txt"):
            (tmp_path / "src" / name).write_text("about")
    with pytest.raises(UserError, match=f"(?s)^--strict: .*{line}"):
        pack(tmp_path / "src", tmp_path / "strict", strict=True, progress=False)
    assert not (tmp_path / "strict").exists()
    capsys.readouterr()
    packed(tmp_path / "src", tmp_path / "out")
    assert re.search(line, capsys.readouterr().err)


def test_a_clean_folder_has_nothing_to_tell(tmp_path: Path) -> None:
    root = folder_of_classes(tmp_path / "photos")
    for litter in (".DS_Store", "cat/._top.png", "Thumbs.db"):
        (root / litter).write_bytes(b"x")
    assert account_of(root, tmp_path / "out") == ""


def test_splits_beside_classes_cannot_be_told(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "test/cat/1.png", "extra/cat/1.png"):
        photo(tmp_path / "src" / name)
    with pytest.raises(UserError, match=r"extra: a folder of samples beside the splits test, tra"):
        packed(tmp_path / "src", tmp_path / "out")


def test_links_are_followed_inside_of_the_root_alone(tmp_path: Path) -> None:
    photo(tmp_path / "store" / "cats" / "1.png")
    loose = photo(tmp_path / "store" / "2.png")
    source = tmp_path / "src"
    source.mkdir()
    (source / "cat").symlink_to(tmp_path / "store" / "cats")
    with pytest.raises(UserError, match=r"a link to a folder, which is not followed.*--root"):
        packed(source, tmp_path / "out")
    (source / "2.png").symlink_to(loose)
    with pytest.raises(UserError, match=r"2\.png: lies outside .*--root"):
        packed(source, tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        packed(source, tmp_path / "out", root=tmp_path / "absent")
    sets = packed(source, tmp_path / "out", root=tmp_path / "store")
    assert labels(sets[""]) == {"cat/1": "cat", "2": None}
    (tmp_path / "store" / "cats" / "round").symlink_to(tmp_path / "store" / "cats")
    with pytest.raises(UserError, match="round: a link to a folder that it lies in"):
        packed(source, tmp_path / "again", root=tmp_path / "store")
