"""Common Voice, its tables written as its own tool writes them, by pandas without quoting."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas
import pytest
from layout_packs import json_of, noise, pack_layout, write_sound

from mmscale.data.account import Account
from mmscale.data.ingest.open_layout import find_layout
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

LAYOUT = LAYOUTS["common_voice"]
COLUMNS = ["client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes",
           "down_votes", "age", "gender", "accents", "variant", "locale", "segment"]  # fmt: skip
SENTENCES = {
    "train": ['"Hello", she said.', "plain", "a\ttab and a back\\slash\\", '"', '"all of it"'],
    "dev": ["数字 one", '5" pipes'],
    "test": ["It's\u2028two lines to some"],
}


def row(lang: str, number: int, sentence: str) -> dict[str, Any]:
    return {
        "client_id": f"client{number}", "path": f"common_voice_{lang}_{number}.mp3",
        "sentence_id": f"s{number}", "sentence": sentence, "sentence_domain": None,
        "up_votes": 2, "down_votes": number % 2, "age": "twenties" if number % 2 else None,
        "gender": None, "accents": 'of "the north"', "variant": None, "locale": lang,
        "segment": None,
    }  # fmt: skip


def write_table(path: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    if not options:
        options = {"escapechar": "\\", "quoting": csv.QUOTE_NONE}
    table = pandas.DataFrame(rows, columns=COLUMNS)
    table.to_csv(path, sep="\t", header=True, index=False, encoding="utf-8", **options)


def write_language(folder: Path, lang: str, **options: Any) -> dict[str, list[dict[str, Any]]]:
    tables: dict[str, list[dict[str, Any]]] = {}
    number = 0
    (folder / "clips").mkdir(parents=True)
    for split, sentences in SENTENCES.items():
        for sentence in sentences:
            tables.setdefault(split, []).append(row(lang, number, sentence))
            write_sound(folder / f"clips/common_voice_{lang}_{number}.mp3", noise(8000, number))
            number += 1
    tables["validated"] = [one for rows in tables.values() for one in rows]
    for split, rows in tables.items():
        write_table(folder / f"{split}.tsv", rows, **options)
    return tables


def expected_json(one: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in one.items()
        if value is not None and name not in ("path", "sentence")
    }


@pytest.mark.parametrize("options", [{}, {"escapechar": '"'}], ids=["today's", "older"])
def test_every_row_is_a_sample_of_its_split(tmp_path: Path, options: dict[str, Any]) -> None:
    source = tmp_path / "en"
    tables = write_language(source, "en", **options)
    assert find_layout(source, None) is LAYOUT
    account = Account()
    packed = pack_layout("common_voice", source, tmp_path / "out", account)
    assert packed.keys() == {"train", "dev", "test"}
    for split, samples in packed.items():
        assert len(samples) == len(tables[split])
        for one in tables[split]:
            sample = samples[one["path"].removesuffix(".mp3")]
            assert sample["mp3"] == (source / "clips" / one["path"]).read_bytes()
            assert sample["txt"].decode() == one["sentence"]
            assert json_of(sample) == expected_json(one)
    (line,) = account.lines()
    assert line.startswith("1 tables that are no splits, left out (validated.tsv); --split")


def test_languages_of_one_corpus(tmp_path: Path) -> None:
    source = tmp_path / "cv-corpus-17.0-2024-03-15"
    for lang in ("en", "zh-CN"):
        write_language(source / lang, lang)
    assert find_layout(source, None) is LAYOUT
    train = pack_layout("common_voice", source, tmp_path / "out")["train"]
    assert sorted(train) == sorted(
        f"{lang}/common_voice_{lang}_{number}" for lang in ("en", "zh-CN") for number in range(5)
    )
    assert json_of(train["zh-CN/common_voice_zh-CN_1"])["locale"] == "zh-CN"


def test_tables_that_are_no_splits_are_given_when_asked(tmp_path: Path) -> None:
    source = tmp_path / "en"
    write_language(source, "en")
    write_sound(source / "clips/common_voice_en_77.mp3", noise(8000))
    write_table(source / "other.tsv", [row("en", 77, "later")])
    (source / "reported.tsv").write_text("sentence\treason\n")
    account = Account()
    packed = pack_layout("common_voice", source, tmp_path / "out", account, split="other")
    assert packed.keys() == {""} and list(packed[""]) == ["common_voice_en_77"]
    lines = "\n".join(account.lines())
    assert "8 clips that no row of the splits names, left out (clips/common_voice_en_0.mp3" in lines
    assert "4 tables that are no splits, left out (train.tsv, dev.tsv, test.tsv, …)" in lines
    assert "1 files beside the clips that are not read (reported.tsv)" in lines
    with pytest.raises(UserError, match=r"no split 'invalidated'; it has train, dev, test, val"):
        pack_layout("common_voice", source, tmp_path / "no", split="invalidated")


def test_a_text_of_another_column_and_a_row_without_one(tmp_path: Path) -> None:
    source = tmp_path / "en"
    write_language(source, "en")
    write_table(source / "dev.tsv", [row("en", 5, ""), row("en", 6, " x ")])
    account = Account()
    dev = pack_layout("common_voice", source, tmp_path / "1", account, split="dev")[""]
    assert "txt" not in dev["common_voice_en_5"] and dev["common_voice_en_6"]["txt"] == b"x"
    empty = [line for line in account.lines() if "text is empty" in line]
    assert len(empty) == 1 and f"1 clips whose text is empty ({source}/dev.tsv: line 2)" in empty[0]
    other = pack_layout("common_voice", source, tmp_path / "2", columns={"text": "client_id"})
    assert other["dev"]["common_voice_en_5"]["txt"] == b"client5"
    assert json_of(other["dev"]["common_voice_en_5"])["sentence_id"] == "s5"
    labels = pack_layout("common_voice", source, tmp_path / "4", columns={"label": "locale"})
    assert json_of(labels["dev"]["common_voice_en_5"])["label"] == "en"
    with pytest.raises(UserError, match=r"--image x: not for the layout common_voice, which takes"):
        pack_layout("common_voice", source, tmp_path / "5", columns={"image": "x"})
    with pytest.raises(UserError, match=r"dev\.tsv: no column 'words' in the header; it has cli"):
        pack_layout("common_voice", source, tmp_path / "3", columns={"text": "words"},
                    split="dev")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("client_id\tpath\tsentence\nc\ta.mp3\n", "line 2: 2 cells, but the header names 3"),
        ("client_id\tpath\tsentence\nc\t\tx\n", "line 2: no path"),
        ("client_id\tsentence\nc\tx\n", "the header lacks the column path"),
        ("path\tsentence\ncommon_voice_en_0.mp3\tx\ncommon_voice_en_0.mp3\ty\n",
         r"line 3: common_voice_en_0\.mp3 is also that of .*line 2"),
        ("path\tsentence\ngone.mp3\tx\n", r"line 2: audio 'clips/gone\.mp3': no such file"),
        ("path\tsentence\n../train.tsv\tx\n", r"line 2: audio .* does not end in"),
    ],
)  # fmt: skip
def test_broken_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    write_language(tmp_path / "en", "en")
    (tmp_path / "en/train.tsv").write_text(text)
    with pytest.raises(UserError, match=message):
        pack_layout("common_voice", tmp_path / "en", tmp_path / "out")


def test_a_folder_that_is_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    assert not LAYOUT.matches(tmp_path)
    with pytest.raises(UserError, match=r"no clips/ beside train\.tsv or validated\.tsv"):
        pack_layout("common_voice", tmp_path, tmp_path / "out")
