"""Pack the Free Spoken Digit Dataset (3,000 English digits by 6 speakers) into training and test shards.

Samples: wav as published (8 kHz), txt the digit's word, json {"digit", "speaker", "index"}. The split is the
publisher's: recordings 0-4 of each digit and speaker are test (300), 5-49 train (2,700). Speakers are the
same in both.
"""

from __future__ import annotations

import argparse
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

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_INDICES = range(5)


def prepare(source: Path, out: Path) -> None:
    """Write ``out/train`` and ``out/test``. Raises `UserError` where source or out cannot be used."""
    if all((out / split / "index").is_dir() for split in ("train", "test")):
        print(f"{out}: already prepared")
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: holds something else than a finished data set; remove it or change --out")
    recordings = sorted((source / "recordings").glob("*.wav"))
    if not recordings:
        raise UserError(f"{source / 'recordings'}: no wav files; point --source or MMSCALE_DATA at FSDD")
    splits: dict[str, list[Path]] = {"train": [], "test": []}
    for path in recordings:
        splits["test" if _facts(path)["index"] in TEST_INDICES else "train"].append(path)
    for split, paths in splits.items():
        order = Permutation(derive_key("fsdd", split), len(paths))(np.arange(len(paths)))
        with ShardWriter(out / split, prefix="fsdd", samples_per_shard=500) as writer:
            for position in order:
                path = paths[position]
                facts = _facts(path)
                fields = {
                    "wav": path.read_bytes(),
                    "txt": WORDS[int(facts["digit"])].encode(),
                    "json": json.dumps(facts).encode(),
                }
                writer.write(path.stem, fields)
        build_index(out / split, MediaConfig(), progress=False)
        print(f"{out / split}: {len(paths)} samples")


def _facts(path: Path) -> dict[str, int | str]:
    """What the file name says: digit_speaker_index."""
    parts = path.stem.split("_")
    if len(parts) != 3 or not (parts[0].isdecimal() and parts[2].isdecimal() and int(parts[0]) < 10):
        raise UserError(f"{path}: the name is not digit_speaker_index.wav; remove the file from the source")
    return {"digit": int(parts[0]), "speaker": parts[1], "index": int(parts[2])}


def main() -> int:
    root = Path(os.environ.get("MMSCALE_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source",
        type=Path,
        default=root / "fsdd",
        help="folder that holds recordings/*.wav (default: %(default)s; MMSCALE_DATA moves it)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/data/fsdd"),
        help="folder to make train and test in (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        prepare(arguments.source, arguments.out)
    except UserError as error:
        print(f"prepare_fsdd: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
