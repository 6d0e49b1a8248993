"""WenetSpeech: each segment of each subset is that part of its recording."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from layout_packs import json_of, noise, pack_layout, samples_of, write_sound

from mmscale.data.account import Account
from mmscale.data.ingest.open_layout import find_layout
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

LAYOUT = LAYOUTS["wenetspeech"]
RATE = 16_000


def segment(name: str, begin: float, end: float, *subsets: str, text: str = "好") -> dict[str, Any]:
    return {"sid": name, "begin_time": begin, "end_time": end, "text": text,
            "confidence": 0.97, "subsets": list(subsets)}  # fmt: skip


def write_corpus(folder: Path, audios: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tree = {"dataset": "WenetSpeech", "version": 1, "audios": audios}
    (folder / "WenetSpeech.json").write_text(json.dumps(tree, ensure_ascii=False, indent=1))
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    audios = []
    for number, kind in enumerate(["train/youtube", "train/podcast", "dev"]):
        path = f"audio/{kind}/B0000{number}/Y{number}_--5llN02F84.opus"
        write_sound(tmp_path / "corpus" / path, noise(3 * RATE, number))
        subsets = ["L"] if number == 1 else ["M", "L"] if number == 0 else ["DEV"]
        segments = [
            segment(f"Y{number}_S0", 0.25, 1.5, *subsets, text=f"数字{number}"),
            segment(f"Y{number}_S1", 1.5, 2.75, *subsets),
            segment(f"Y{number}_S2", 2.8, 2.9, "W"),
        ]
        audios.append(
            {"aid": f"Y{number}", "duration": 3.0, "md5": "0", "path": path, "source": "youtube",
             "tags": ["drama"], "segments": segments}
        )  # fmt: skip
    return write_corpus(tmp_path / "corpus", audios)


@pytest.mark.parametrize("named", [".", "WenetSpeech.json"])
def test_segments_by_subset(corpus: Path, tmp_path: Path, named: str) -> None:
    source = corpus / named
    assert find_layout(source, None) is LAYOUT
    (corpus / "README.md").write_text("")
    account = Account()
    packed = pack_layout("wenetspeech", source, tmp_path / "out", account)
    tree = json.loads((corpus / "WenetSpeech.json").read_text())
    compared = 0
    for recording in tree["audios"]:
        decoded = soundfile.read(corpus / recording["path"], dtype="float64", always_2d=True)[0]
        for part in recording["segments"]:
            for split in part["subsets"]:
                if split == "M":
                    continue
                sample = packed[split].pop(part["sid"])
                begin, end = (round(part[name] * RATE) for name in ("begin_time", "end_time"))
                wave = samples_of(sample["flac"])
                assert np.abs(wave - decoded[begin:end] * 2**15).max() <= 0.51
                assert len(wave) == end - begin
                assert sample["txt"].decode() == part["text"]
                assert json_of(sample) == {
                    "aid": recording["aid"], "source": "youtube", "tags": ["drama"],
                    **{name: part[name] for name in part if name not in ("sid", "text")},
                }  # fmt: skip
                compared += 1
    assert compared == 9 and packed == {"L": {}, "DEV": {}, "W": {}}
    (line,) = account.lines()
    assert line.startswith("1 files beside the clips that are not read (README.md)")


def test_a_subset_that_is_asked_for(corpus: Path, tmp_path: Path) -> None:
    account = Account()
    packed = pack_layout("wenetspeech", corpus, tmp_path / "out", account, split="M")
    assert packed.keys() == {""} and packed[""].keys() == {"Y0_S0", "Y0_S1"}
    (line,) = account.lines()
    assert line.startswith("7 segments of no split that is packed, left out (W, L, DEV, …); --")
    with pytest.raises(UserError, match=r"no split 'S'; it has DEV, L, M, W"):
        pack_layout("wenetspeech", corpus, tmp_path / "no", split="S")


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([segment("a", 0, 1, "L"), segment("a", 1, 2, "L")], r"key 'a' is also .*segment 1"),
        ([segment("a", 0, 9, "L")], r"audio 1 segment 1: .*a\.wav: .*the recording has 2 s"),
        ([segment("a", 1, 1, "L")], r"audio 1 segment 1: .*a\.wav: .*holds no sound"),
        ([{"sid": "a"}], r"audio 1 segment 1: begin_time is None; copy the file again"),
        ([segment("a", 0, 1, "L") | {"subsets": [{}]}], r"segment 1: subsets are no names"),
        (["a"], r"audio 1 segment 1: not an object"),
        ({"a": 1}, r"audio 1: segments is \{'a': 1\}; copy"),
    ],
)  # fmt: skip
def test_broken_segments_are_refused(tmp_path: Path, segments, message: str) -> None:
    write_sound(tmp_path / "a.wav", noise(2 * RATE))
    write_corpus(tmp_path, [{"aid": "A", "path": "a.wav", "segments": segments}])
    with pytest.raises(UserError, match=message):
        pack_layout("wenetspeech", tmp_path, tmp_path / "out")


def test_missing_and_cut_files_are_refused(corpus: Path, tmp_path: Path) -> None:
    table = corpus / "WenetSpeech.json"
    whole = table.read_text()
    next(corpus.glob("audio/dev/*/*.opus")).unlink()
    with pytest.raises(UserError, match=r"audio 3 segment 1: audio 'audio/dev.*no such file"):
        pack_layout("wenetspeech", corpus, tmp_path / "1")
    table.write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"WenetSpeech\.json: row 2: not JSON"):
        pack_layout("wenetspeech", corpus, tmp_path / "2")
    table.write_text('{"dataset": "WenetSpeech"}')
    with pytest.raises(UserError, match=r"no list 'audios' in it"):
        pack_layout("wenetspeech", corpus, tmp_path / "3")
    assert not LAYOUT.matches(corpus)
    with pytest.raises(UserError, match=r"no WenetSpeech\.json in it"):
        pack_layout("wenetspeech", corpus / "audio", tmp_path / "4")


def test_an_empty_text_is_named(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", noise(2 * RATE))
    write_corpus(
        tmp_path,
        [{"aid": "A", "path": "a.wav", "segments": [segment("a", 0, 1, "L", text=" ")]}],
    )
    account = Account()
    packed = pack_layout("wenetspeech", tmp_path, tmp_path / "out", account)["L"]
    assert packed["a"].keys() == {"flac", "json"}
    assert any("1 clips whose text is empty (" in line for line in account.lines())
