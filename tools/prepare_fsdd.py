"""Pack the Free Spoken Digit Dataset (3,000 English digits by 6 speakers) into training and test
shards.

Samples: wav as published (8 kHz), txt the digit's word, json {"digit", "speaker", "index"}. The
split is the publisher's: recordings 0-4 of each digit and speaker are test (300), 5-49 train
(2,700). Speakers are the same in both.

Published at https://github.com/Jakobovski/free-spoken-digit-dataset.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import preparation

from mmscale.errors import UserError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_INDICES = range(5)


def read_splits(source: Path) -> preparation.Splits:
    """The samples of both splits. Raises `UserError` where the source cannot be used."""
    recordings = sorted((source / "recordings").glob("*.wav"))
    if not recordings:
        raise UserError(
            f"{source / 'recordings'}: no wav files; point --source or MMSCALE_DATA at FSDD"
        )
    splits: dict[str, list[preparation.Sample]] = {"train": [], "test": []}
    for path in recordings:
        facts = _facts(path)
        fields = {
            "wav": path.read_bytes(),
            "txt": WORDS[int(facts["digit"])].encode(),
            "json": json.dumps(facts).encode(),
        }
        splits["test" if facts["index"] in TEST_INDICES else "train"].append((path.stem, fields))
    return dict(splits)


def _facts(path: Path) -> dict[str, int | str]:
    """What the file name says: digit_speaker_index."""
    parts = path.stem.split("_")
    if len(parts) != 3 or not (
        parts[0].isdecimal() and parts[2].isdecimal() and int(parts[0]) < 10
    ):
        raise UserError(
            f"{path}: the name is not digit_speaker_index.wav; remove the file from the source"
        )
    return {"digit": int(parts[0]), "speaker": parts[1], "index": int(parts[2])}


if __name__ == "__main__":
    sys.exit(preparation.run("fsdd", read_splits, __doc__, "recordings/*.wav"))
