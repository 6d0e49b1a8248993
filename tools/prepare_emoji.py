"""Pack Noto emoji pictures with their English and Chinese names into training and test shards.

Samples: png as published (128x128 RGBA), txt the English name, json {"en", "zh", "aliases_en" (a list),
"group", "skin_tone"}. Only pictures with a row in captions.csv are taken (3,528). The split hashes the
group (the emoji without its skin tone), one group in ten is test, so that no test picture is a training
picture in another skin tone. A picture that is also in test, byte for byte under another name, is left out
of train (1).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np

from mmscale.config import MediaConfig
from mmscale.data.index import build_index
from mmscale.data.pack import ShardWriter
from mmscale.errors import UserError
from mmscale.prf import Permutation, derive_key

COLUMNS = {"file", "en", "zh", "aliases_en", "group", "skin_tone"}

Row = dict[str, str]


def prepare(source: Path, out: Path) -> None:
    """Write ``out/train`` and ``out/test``. Raises `UserError` where source or out cannot be used."""
    if all((out / split / "index").is_dir() for split in ("train", "test")):
        print(f"{out}: already prepared")
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: holds something else than a finished data set; remove it or change --out")
    splits: dict[str, list[Row]] = {"train": [], "test": []}
    for row in _read_rows(source / "captions.csv"):
        if not (source / row["file"]).is_file():
            raise UserError(f"{source / row['file']}: named in captions.csv but missing; complete the source")
        splits["test" if derive_key("emoji", row["group"]) % 10 == 0 else "train"].append(row)
    held_out = {_digest(source / row["file"]) for row in splits["test"]}
    kept = [row for row in splits["train"] if _digest(source / row["file"]) not in held_out]
    print(f"left out of train, the same picture as in test: {len(splits['train']) - len(kept)}")
    splits["train"] = kept
    for split, rows in splits.items():
        order = Permutation(derive_key("emoji", split), len(rows))(np.arange(len(rows)))
        with ShardWriter(out / split, prefix="emoji", samples_per_shard=500) as writer:
            for position in order:
                row = rows[position]
                path = source / row["file"]
                fields = {"png": path.read_bytes(), "txt": row["en"].encode(), "json": _describe(row)}
                writer.write(path.stem, fields)
        build_index(out / split, MediaConfig(), progress=False)
        print(f"{out / split}: {len(rows)} samples of {len({row['group'] for row in rows})} groups")


def _read_rows(path: Path) -> list[Row]:
    if not path.is_file():
        raise UserError(f"{path}: missing; point --source or MMSCALE_DATA at the emoji set")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        absent = COLUMNS - set(reader.fieldnames or ())
        if absent:
            raise UserError(f"{path}: column {min(absent)!r} is missing; use the published file")
        return list(reader)


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _describe(row: Row) -> bytes:
    facts = {
        "en": row["en"],
        "zh": row["zh"],
        "aliases_en": [alias for alias in row["aliases_en"].split("|") if alias],
        "group": row["group"],
        "skin_tone": int(row["skin_tone"]),
    }
    return json.dumps(facts, ensure_ascii=False).encode()


def main() -> int:
    root = Path(os.environ.get("MMSCALE_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source",
        type=Path,
        default=root / "emoji",
        help="folder that holds captions.csv and png128 (default: %(default)s; MMSCALE_DATA moves it)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/data/emoji"),
        help="folder to make train and test in (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        prepare(arguments.source, arguments.out)
    except UserError as error:
        print(f"prepare_emoji: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
