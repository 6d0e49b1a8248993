"""LibriSpeech as it is unpacked: every line of every transcript with its own sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layout_packs import json_of, noise, pack_layout, samples_of, write_sound

from mmscale.data.account import Account
from mmscale.data.ingest.open_layout import find_layout
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

LAYOUT = LAYOUTS["librispeech"]
CHAPTERS = {("train-clean-100", "19", "198"): 3, ("train-clean-100", "19", "227"): 2,
            ("dev-clean", "84", "121123"): 2}  # fmt: skip


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    top = tmp_path / "LibriSpeech"
    for seed, ((subset, speaker, chapter), many) in enumerate(CHAPTERS.items()):
        folder, lines = top / subset / speaker / chapter, []
        for number in range(many):
            name = f"{speaker}-{chapter}-{number:04d}"
            write_sound(folder / f"{name}.flac", noise(1600 + number, seed * 10 + number))
            lines.append(f"{name} NORTHANGER ABBEY {number}\n")
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    (top / "SPEAKERS.TXT").write_text("; the speakers")
    return top


@pytest.mark.parametrize("named", ["LibriSpeech", "."])
def test_every_line_is_a_sample_of_its_subset(corpus: Path, tmp_path: Path, named: str) -> None:
    source = corpus.parent / named
    assert find_layout(source, None) is LAYOUT
    account = Account()
    packed = pack_layout("librispeech", source, tmp_path / "out", account)
    assert packed.keys() == {"train-clean-100", "dev-clean"}
    for (subset, speaker, chapter), many in CHAPTERS.items():
        folder = corpus / subset / speaker / chapter
        for number in range(many):
            name = f"{speaker}-{chapter}-{number:04d}"
            sample = packed[subset].pop(name)
            assert sample["flac"] == (folder / f"{name}.flac").read_bytes()
            assert sample["txt"].decode() == f"NORTHANGER ABBEY {number}"
            assert json_of(sample) == {"speaker": speaker, "chapter": chapter}
    assert packed == {"train-clean-100": {}, "dev-clean": {}}
    (line,) = account.lines()
    assert line.startswith("1 files beside the clips that are not read (SPEAKERS.TXT)")


def test_one_subset_alone_has_no_splits(corpus: Path, tmp_path: Path) -> None:
    assert find_layout(corpus / "dev-clean", None) is LAYOUT
    packed = pack_layout("librispeech", corpus / "dev-clean", tmp_path / "out")
    assert packed.keys() == {""} and len(packed[""]) == 2
    asked = pack_layout("librispeech", corpus, tmp_path / "asked", split="dev-clean")
    assert asked == packed
    with pytest.raises(UserError, match=r"no split 'test'; it has dev-clean, train-clean-100"):
        pack_layout("librispeech", corpus, tmp_path / "no", split="test")


def test_what_lacks_its_other_half_is_named(corpus: Path, tmp_path: Path) -> None:
    folder = corpus / "train-clean-100/19/198"
    (folder / "19-198-0001.flac").unlink()
    write_sound(folder / "19-198-0009.flac", noise(100))
    with open(folder / "19-198.trans.txt", "a") as file:
        file.write("19-198-0008\n")
    write_sound(folder / "19-198-0008.flac", noise(1000))
    account = Account()
    packed = pack_layout("librispeech", corpus, tmp_path / "out", account)["train-clean-100"]
    assert "19-198-0001" not in packed and "19-198-0009" not in packed
    assert packed["19-198-0008"].keys() == {"flac", "json"}
    lines = "\n".join(account.lines())
    assert f"1 transcripts without a clip, left out ({folder}/19-198.trans.txt: line 2)" in lines
    assert f"1 clips without a transcript, left out ({folder}/19-198-0009.flac)" in lines
    assert f"1 clips whose text is empty ({folder}/19-198.trans.txt: line 4)" in lines
    with pytest.raises(UserError, match="--strict: "):
        account.tell(strict=True)


def test_broken_transcripts_are_refused(corpus: Path, tmp_path: Path) -> None:
    table = corpus / "train-clean-100/19/198/19-198.trans.txt"
    good = table.read_bytes()
    table.write_bytes(good + b"19-198-0000 AGAIN\n")
    with pytest.raises(UserError, match=r"trans\.txt: line 4: 19-198-0000 is also on line 1"):
        pack_layout("librispeech", corpus, tmp_path / "1")
    table.write_bytes(good + b"19-198-0004 \xff\n")
    with pytest.raises(UserError, match=r"trans\.txt: line 4: not UTF-8"):
        pack_layout("librispeech", corpus, tmp_path / "2")
    table.write_bytes(good)
    other = corpus / "train-clean-100/19/227/19-227.trans.txt"
    other.write_bytes(other.read_bytes() + b"19-198-0000 ELSEWHERE\n")
    with pytest.raises(UserError, match=r"227\.trans\.txt: line 3: 19-198-0000 is also in .*198"):
        pack_layout("librispeech", corpus, tmp_path / "3")


def test_a_folder_that_is_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "cat/deep").mkdir(parents=True)
    (tmp_path / "cat/deep/a.trans.txt").write_text("x y")
    assert not LAYOUT.matches(tmp_path)
    assert not LAYOUT.matches(tmp_path / "cat/deep/a.trans.txt")
    with pytest.raises(UserError, match="name the folder that holds train-clean-100"):
        pack_layout("librispeech", tmp_path, tmp_path / "out")


def test_there_are_no_columns_to_choose(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--text x: not for the layout librispeech, which takes"):
        pack_layout("librispeech", corpus, tmp_path / "out", columns={"text": "x"})


def test_two_clips_of_one_name(corpus: Path, tmp_path: Path) -> None:
    write_sound(corpus / "dev-clean/84/121123/84-121123-0000.wav", noise(100))
    with pytest.raises(UserError, match=r"84-121123-0000\.wav: beside 84-121123-0000\.flac"):
        pack_layout("librispeech", corpus, tmp_path / "out")


def test_sound_is_not_touched(corpus: Path, tmp_path: Path) -> None:
    sample = pack_layout("librispeech", corpus, tmp_path / "out")["dev-clean"]["84-121123-0001"]
    assert np.array_equal(samples_of(sample["flac"]), noise(1601, 21))
