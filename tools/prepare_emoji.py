"""Pack Noto emoji pictures with their English and Chinese names into training and test shards.

Samples: png as published (128x128 RGBA), txt the English name, json {"en", "zh", "aliases_en" (a
list), "group", "skin_tone"}. Only pictures with a row in captions.csv are taken (3,528). The split
hashes the group (the emoji without its skin tone), one group in ten is test, so that no test
picture is a training picture in another skin tone. A picture that is also in test, byte for byte
under another name, is left out of train (1).

Pictures: png/128 of https://github.com/googlefonts/noto-emoji, as png128/. Names: captions.csv, a
table (file, emoji, en, zh, aliases_en by "|", group, skin_tone) made from emoji/unicode_codes of
https://github.com/carpedm20/emoji.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from pathlib import Path

import preparation

from mmscale.errors import UserError
from mmscale.prf import derive_key

COLUMNS = {"file", "en", "zh", "aliases_en", "group", "skin_tone"}

Row = dict[str, str]


def read_splits(source: Path) -> preparation.Splits:
    """The samples of both splits. Raises `UserError` where the source cannot be used."""
    splits: dict[str, list[preparation.Sample]] = {"train": [], "test": []}
    for row in _read_rows(source / "captions.csv"):
        path = source / row["file"]
        if not path.is_file():
            raise UserError(f"{path}: named in captions.csv but missing; complete the source")
        fields = {"png": path.read_bytes(), "txt": row["en"].encode(), "json": _describe(row)}
        splits["test" if derive_key("emoji", row["group"]) % 10 == 0 else "train"].append(
            (path.stem, fields)
        )
    held_out = {hashlib.sha256(fields["png"]).digest() for _, fields in splits["test"]}
    kept = [
        sample
        for sample in splits["train"]
        if hashlib.sha256(sample[1]["png"]).digest() not in held_out
    ]
    print(f"left out of train, the same picture as in test: {len(splits['train']) - len(kept)}")
    return {"train": kept, "test": splits["test"]}


def _read_rows(path: Path) -> list[Row]:
    if not path.is_file():
        raise UserError(f"{path}: missing; point --source or MMSCALE_DATA at the emoji set")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        absent = COLUMNS - set(reader.fieldnames or ())
        if absent:
            raise UserError(f"{path}: column {min(absent)!r} is missing; use the published file")
        return list(reader)


def _describe(row: Row) -> bytes:
    facts = {
        "en": row["en"],
        "zh": row["zh"],
        "aliases_en": [alias for alias in row["aliases_en"].split("|") if alias],
        "group": row["group"],
        "skin_tone": int(row["skin_tone"]),
    }
    return json.dumps(facts, ensure_ascii=False).encode()


if __name__ == "__main__":
    sys.exit(
        preparation.run("emoji", read_splits, __doc__, "captions.csv and the pictures it names")
    )
