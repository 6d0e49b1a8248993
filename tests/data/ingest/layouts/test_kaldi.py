"""Kaldi's and ESPnet's data folders: whole recordings, parts of them, and what is never run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from layout_packs import json_of, noise, pack_layout, samples_of, write_sound

from mmscale.data.account import Account
from mmscale.data.ingest.open_layout import find_layout
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

LAYOUT = LAYOUTS["kaldi"]
RATE = 16_000


def write_set(folder: Path, **files: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (folder / name.replace("_", ".")).write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe's folder: paths are relative to it, as its scripts write them."""
    top = tmp_path / "egs/mini/s5"
    for split, many in {"train": 3, "test": 1}.items():
        scp, text, speakers = [], [], []
        for number in range(many):
            name = f"spk{number}-{split}.{number}"
            write_sound(top / f"downloads/{split}/a b {number}.flac", noise(1600, number))
            path = f"downloads/{split}/a b {number}.flac"
            scp.append(f"{name} {path if number else (top / path).absolute()}")
            text.append(f"{name} 数字  {number}")
            speakers.append(f"{name} spk{number}")
        write_set(top / "data" / split, wav_scp=scp, text=text, utt2spk=speakers)
        write_set(top / "data" / split, spk2utt=["x"])
    return top


@pytest.mark.parametrize("named", [".", "data", "data/train"])
def test_whole_recordings(recipe: Path, tmp_path: Path, named: str) -> None:
    source = recipe / named
    assert find_layout(source, None) is LAYOUT
    # The first of train is absolute, so that the folder of the recipe has to be found by the rest.
    whole = "" if named.endswith("train") else "train"
    (recipe / "data/test/wav.scp").write_text("spk0-test.0 downloads/test/a b 0.flac\n")
    account = Account()
    packed = pack_layout("kaldi", source, tmp_path / "out", account)
    assert packed.keys() == ({""} if not whole else {"train", "test"})
    assert len(packed[whole]) == 3
    for number in range(3):
        sample = packed[whole][f"spk{number}-train_{number}"]
        path = recipe / f"downloads/train/a b {number}.flac"
        assert sample["flac"] == path.read_bytes()
        assert sample["txt"].decode() == f"数字  {number}"
        assert json_of(sample) == {"speaker": f"spk{number}"}
    assert [line[:48] for line in account.lines()] == [
        f"{1 if not whole else 2} files beside the clips that are not read (spk2"
    ]


def test_parts_of_recordings(tmp_path: Path) -> None:
    wave = noise(4 * RATE)
    for name in ("rec", "unused"):
        write_sound(tmp_path / f"set/{name}.wav", wave)
    source = write_set(
        tmp_path / "set",
        wav_scp=["r rec.wav", "u unused.wav"],
        segments=["r-1 r 0.5 1.25", "r-2 r 1.25 -1", "r-3 r 0 1"],
        text=["r-1 one", "r-2 two", "r-4 four"],
    )
    account = Account()
    packed = pack_layout("kaldi", source, tmp_path / "out", account)[""]
    assert packed.keys() == {"r-1", "r-2"}
    assert np.array_equal(samples_of(packed["r-1"]["flac"]), wave[RATE // 2 : RATE * 5 // 4])
    assert np.array_equal(samples_of(packed["r-2"]["flac"]), wave[RATE * 5 // 4 :])
    assert [packed[key]["txt"] for key in ("r-1", "r-2")] == [b"one", b"two"]
    lines = account.lines()
    assert f"1 recordings without a segment, left out ({source}/wav.scp: line 2)" in lines[0]
    assert f"1 transcripts without a clip, left out ({source}/text: line 3)" in lines[1]
    assert f"1 clips without a transcript, left out ({source}/segments: line 3)" in lines[2]


def test_a_root_for_relative_paths(tmp_path: Path) -> None:
    write_sound(tmp_path / "elsewhere/wavs/a.wav", noise(100))
    source = write_set(tmp_path / "deep/er/still/set", wav_scp=["a wavs/a.wav"], text=["a x"])
    with pytest.raises(UserError, match=r"'wavs/a\.wav' is neither in .*--root DIR"):
        pack_layout("kaldi", source, tmp_path / "1")
    (source / "wav.scp").write_text("0 wavs/gone.wav\na wavs/a.wav\n")
    packed = pack_layout("kaldi", source, tmp_path / "2", root=tmp_path / "elsewhere")
    assert packed[""].keys() == {"a"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"wav_scp": ["a sox a.sph -t wav - |"]}, r"wav\.scp: line 1: a command \('sox a\.sph"),
        ({"wav_scp": ["a |cat a.wav"]}, r"wav\.scp: line 1: a command"),
        ({"wav_scp": ["a a.wav", "b raw.ark:1234"]}, r"line 2: a place in an archive \('raw\.ark"),
        ({"wav_scp": ["a raw.ark:1234[0:9]"]}, r"line 1: a place in an archive"),
        ({"wav_scp": ["a -"]}, r"line 1: a place in an archive"),
        ({"wav_scp": ["a"]}, r"line 1: names no file; write ID PATH"),
        ({"wav_scp": ["a a.wav", "a a.wav"]}, r"line 2: a is also on line 1"),
        ({"wav_scp": ["a a.wav", "b gone.wav"]}, r"line 2: audio 'gone\.wav': no such file"),
        ({"text": ["a x", "a y"]}, r"text: line 2: a is also on line 1"),
        ({"segments": ["a a 0"]}, r"segments: line 1: not ID RECORDING BEGIN END"),
        ({"segments": ["a a 0 x"]}, r"segments: line 1: not ID RECORDING BEGIN END"),
        ({"segments": ["a c 0 1"]}, r"segments: line 1: no recording c in wav\.scp"),
        ({"segments": ["a a 0 99"]}, r"segments: line 1: .*a\.wav: .*the recording has 0\.1 s"),
        ({"segments": ["a a nan 1"]}, r"segments: line 1: .*a\.wav: .*no finite numbers"),
    ],
)  # fmt: skip
def test_broken_folders_are_refused(tmp_path: Path, files, message: str) -> None:
    write_sound(tmp_path / "set/a.wav", noise(1600))
    good = {"wav_scp": ["a a.wav"], "text": ["a x", "b y"]}
    with pytest.raises(UserError, match=message):
        pack_layout("kaldi", write_set(tmp_path / "set", **good | files), tmp_path / "out")


def test_nothing_is_run(tmp_path: Path) -> None:
    source = write_set(tmp_path, wav_scp=[f"a touch {tmp_path}/ran |"], text=["a x"])
    with pytest.raises(UserError, match="none is run"):
        pack_layout("kaldi", source, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_an_empty_transcript_is_named(tmp_path: Path) -> None:
    write_sound(tmp_path / "set/a.wav", noise(1600))
    account = Account()
    source = write_set(tmp_path / "set", wav_scp=["a a.wav"], text=["a"], utt2lang=["a zh"])
    packed = pack_layout("kaldi", source, tmp_path / "out", account)[""]
    assert packed["a"].keys() == {"wav", "json"} and json_of(packed["a"]) == {"language": "zh"}
    assert account.lines()[0].startswith(f"1 clips whose text is empty ({source}/text: line 1)")


def test_a_folder_that_is_none_of_it(tmp_path: Path) -> None:
    write_set(tmp_path / "set", wav_scp=["a a.wav"])
    assert not LAYOUT.matches(tmp_path)
    with pytest.raises(UserError, match=r"no wav\.scp beside a text"):
        pack_layout("kaldi", tmp_path, tmp_path / "out")
