"""AISHELL-1 as it is unpacked: sound of every split, text without the segmentation's spaces."""

from __future__ import annotations

from pathlib import Path

import pytest
from layout_packs import json_of, noise, pack_layout, write_sound

from mmscale.data.account import Account
from mmscale.data.ingest.layouts.aishell import join_han
from mmscale.data.ingest.open_layout import find_layout
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

LAYOUT = LAYOUTS["aishell"]
CLIPS = {
    ("train", "S0002", "BAC009S0002W0122"): ("而 对 楼市 成交 抑制 作用 最 大 的 限 购",
                                             "而对楼市成交抑制作用最大的限购"),
    ("train", "S0003", "BAC009S0003W0121"): ("看 NBA 球员 打球", "看 NBA 球员打球"),
    ("dev", "S0724", "BAC009S0724W0121"): ("广州市 房地产", "广州市房地产"),
    ("test", "S0764", "BAC009S0764W0121"): ("甚至", "甚至"),
}  # fmt: skip


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    top = tmp_path / "data_aishell"
    for seed, (split, speaker, name) in enumerate(CLIPS):
        write_sound(top / "wav" / split / speaker / f"{name}.wav", noise(1600, seed))
    write_transcript(top, *(f"{name} {text}" for (_, _, name), (text, _) in CLIPS.items()))
    return top


def write_transcript(top: Path, *lines: str) -> None:
    (top / "transcript").mkdir(exist_ok=True)
    (top / "transcript/aishell_transcript_v0.8.txt").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("named", ["data_aishell", "."])
def test_every_clip_with_its_text(corpus: Path, tmp_path: Path, named: str) -> None:
    assert find_layout(corpus.parent / named, None) is LAYOUT
    account = Account()
    packed = pack_layout("aishell", corpus.parent / named, tmp_path / "out", account)
    assert packed.keys() == {"train", "dev", "test"}
    for (split, speaker, name), (segmented, text) in CLIPS.items():
        sample = packed[split].pop(name)
        assert sample["wav"] == (corpus / "wav" / split / speaker / f"{name}.wav").read_bytes()
        assert sample["txt"].decode() == text
        assert json_of(sample) == {"segmented": segmented, "speaker": speaker}
    assert not any(packed.values())
    (line,) = account.lines()
    assert line.startswith("3 texts with spaces between words (")
    assert line.endswith("json.segmented has them")


@pytest.mark.parametrize(
    ("text", "joined"),
    [("一 二", "一二"), ("一  二　三", "一二三"), ("a b", "a b"), ("卡 拉 ok 了", "卡拉 ok 了"),
     ("𠮷 〇 々", "𠮷〇々"), ("", "")],
)  # fmt: skip
def test_spaces_go_only_between_chinese_characters(text: str, joined: str) -> None:
    assert join_han(text) == joined


def test_halves_are_named(corpus: Path, tmp_path: Path) -> None:
    write_sound(corpus / "wav/train/S0002/BAC009S0002W0999.wav", noise(100))
    (corpus / "wav/test/S0764/BAC009S0764W0121.wav").unlink()
    (corpus / "wav/S0005.tar.gz").write_bytes(b"")
    account = Account()
    packed = pack_layout("aishell", corpus, tmp_path / "out", account)
    assert packed.keys() == {"train", "dev"} and len(packed["train"]) == 2
    lines = "\n".join(account.lines())
    assert "1 archives that are not unpacked, left out (S0005.tar.gz)" in lines
    assert "1 transcripts without a clip, left out (" in lines and "v0.8.txt: line 4)" in lines
    assert "1 clips without a transcript, left out (" in lines and "W0999.wav)" in lines


def test_broken_sources_are_refused(corpus: Path, tmp_path: Path) -> None:
    write_transcript(corpus, "BAC009S0002W0122 一", "BAC009S0003W0121", "BAC009S0002W0122 二")
    with pytest.raises(UserError, match=r"line 3: BAC009S0002W0122 is also on line 1"):
        pack_layout("aishell", corpus, tmp_path / "1")
    write_transcript(corpus, "BAC009S0002W0122", "BAC009S0003W0121 好")
    account = Account()
    sample = pack_layout("aishell", corpus, tmp_path / "2", account, split="train")[""]
    assert "txt" not in sample["BAC009S0002W0122"]
    assert any(line.startswith("1 clips whose text is empty (") for line in account.lines())
    write_sound(corpus / "wav/train/S0003/BAC009S0002W0122.wav", noise(100))
    with pytest.raises(UserError, match=r"S0003/BAC009S0002W0122\.wav: .*S0002.* same name"):
        pack_layout("aishell", corpus, tmp_path / "3")


def test_sources_that_are_not_unpacked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no transcript/aishell_transcript\*\.txt"):
        pack_layout("aishell", tmp_path, tmp_path / "out")
    (tmp_path / "wav").mkdir()
    write_transcript(tmp_path, "BAC009S0002W0122 一")
    (tmp_path / "wav/S0002.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"wav: no SPLIT/SPEAKER/\*\.wav in it; unpack"):
        pack_layout("aishell", tmp_path, tmp_path / "out")
