"""Pack Chinese news titles of ten classes (THUCNews) into training and test shards.

Samples: txt the title, json {"label" (the class in Chinese), "class" (in English)}. dev.txt becomes
train and test.txt test, 10,000 titles each. 8 titles stand in both files (in 9 lines of dev.txt):
they are left out of train, so 9,991 remain. Lines that repeat within one file are kept.

Published at https://github.com/649453932/Chinese-Text-Classification-Pytorch, THUCNews/data.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import preparation

from mmscale.errors import UserError

LABELS = {
    "finance": "财经",
    "realty": "房产",
    "stocks": "股票",
    "education": "教育",
    "science": "科技",
    "society": "社会",
    "politics": "时政",
    "sports": "体育",
    "game": "游戏",
    "entertainment": "娱乐",
}


class Title(NamedTuple):
    key: str
    text: str
    kind: str
    """English class name."""


def read_splits(source: Path) -> preparation.Splits:
    """The samples of both splits. Raises `UserError` where the source cannot be used."""
    kinds = _read_lines(source / "class.txt")
    if set(kinds) != set(LABELS):
        raise UserError(
            f"{source / 'class.txt'}: not the ten classes of THUCNews; use the published file"
        )
    test = _read_titles(source / "test.txt", kinds)
    published = _read_titles(source / "dev.txt", kinds)
    held_out = {title.text for title in test}
    train = [title for title in published if title.text not in held_out]
    print(f"left out of train, the same title as in test: {len(published) - len(train)}")
    return {
        "train": [_sample(title) for title in train],
        "test": [_sample(title) for title in test],
    }


def _sample(title: Title) -> preparation.Sample:
    facts = {"label": LABELS[title.kind], "class": title.kind}
    return title.key, {
        "txt": title.text.encode(),
        "json": json.dumps(facts, ensure_ascii=False).encode(),
    }


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"{path}: missing; point --source or MMSCALE_DATA at THUCNews")
    # Not splitlines(), which also cuts at characters that a title may hold.
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]


def _read_titles(path: Path, kinds: list[str]) -> list[Title]:
    """Lines of "title<TAB>class number"."""
    titles = []
    for number, line in enumerate(_read_lines(path)):
        text, _, kind = line.rpartition("\t")
        if not text or not kind.isdecimal() or int(kind) >= len(kinds):
            raise UserError(
                f"{path}:{number + 1}: not a title, a tab and a class number; fix the line"
            )
        titles.append(Title(f"{path.stem}-{number:05d}", text, kinds[int(kind)]))
    if not titles:
        raise UserError(f"{path}: holds no title; use the published file")
    return titles


if __name__ == "__main__":
    sys.exit(preparation.run("thucnews", read_splits, __doc__, "class.txt, dev.txt and test.txt"))
