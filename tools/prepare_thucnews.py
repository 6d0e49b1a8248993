"""Pack Chinese news titles of ten classes (THUCNews) into training and test shards.

Samples: txt the title, json {"label" (the class in Chinese), "class" (in English)}. dev.txt becomes train
and test.txt test, 10,000 titles each. 8 titles stand in both files (in 9 lines of dev.txt): they are left
out of train, so 9,991 remain. Lines that repeat within one file are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmscale.config import MediaConfig
from mmscale.data.index import build_index
from mmscale.data.pack import ShardWriter
from mmscale.errors import UserError
from mmscale.prf import Permutation, derive_key

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


def prepare(source: Path, out: Path) -> None:
    """Write ``out/train`` and ``out/test``. Raises `UserError` where source or out cannot be used."""
    if all((out / split / "index").is_dir() for split in ("train", "test")):
        print(f"{out}: already prepared")
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: holds something else than a finished data set; remove it or change --out")
    kinds = _read_lines(source / "class.txt")
    if set(kinds) != set(LABELS):
        raise UserError(f"{source / 'class.txt'}: not the ten classes of THUCNews; use the published file")
    test = _read_titles(source / "test.txt", kinds)
    published = _read_titles(source / "dev.txt", kinds)
    held_out = {title.text for title in test}
    train = [title for title in published if title.text not in held_out]
    print(f"left out of train, the same title as in test: {len(published) - len(train)}")
    for split, titles in (("train", train), ("test", test)):
        order = Permutation(derive_key("thucnews", split), len(titles))(np.arange(len(titles)))
        with ShardWriter(out / split, prefix="thucnews", samples_per_shard=2500) as writer:
            for position in order:
                title = titles[position]
                facts = {"label": LABELS[title.kind], "class": title.kind}
                told = json.dumps(facts, ensure_ascii=False).encode()
                writer.write(title.key, {"txt": title.text.encode(), "json": told})
        build_index(out / split, MediaConfig(), progress=False)
        print(f"{out / split}: {len(titles)} samples of {len({title.kind for title in titles})} classes")


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
            raise UserError(f"{path}:{number + 1}: not a title, a tab and a class number; fix the line")
        titles.append(Title(f"{path.stem}-{number:05d}", text, kinds[int(kind)]))
    if not titles:
        raise UserError(f"{path}: holds no title; use the published file")
    return titles


def main() -> int:
    root = Path(os.environ.get("MMSCALE_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source",
        type=Path,
        default=root / "thucnews",
        help="folder that holds class.txt, dev.txt, test.txt (default: %(default)s; MMSCALE_DATA moves it)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/data/thucnews"),
        help="folder to make train and test in (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        prepare(arguments.source, arguments.out)
    except UserError as error:
        print(f"prepare_thucnews: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
