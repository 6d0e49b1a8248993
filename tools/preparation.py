"""What the preparation scripts share: their command line, and writing two splits in a shuffled
order.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mmscale.config import MediaConfig
from mmscale.data.index.build_index import build_index, has_index
from mmscale.data.ingest.pack import ShardWriter
from mmscale.errors import UserError
from mmscale.prf import Permutation, derive_key

Sample = tuple[str, dict[str, bytes]]
"""Key, and file contents by ending."""
Splits = dict[str, Sequence[Sample]]
"""Samples of ``train`` and ``test``."""


def run(name: str, read: Callable[[Path], Splits], description: str | None, holds: str) -> int:
    """Command line of the script for the set ``name``; returns the exit status.

    ``read`` makes the splits from the folder of published files, which must hold ``holds``, and
    raises `UserError` where it cannot.
    """
    root = Path(os.environ.get("MMSCALE_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source",
        type=Path,
        default=root / name,
        help=f"folder that holds {holds} (default: %(default)s; MMSCALE_DATA moves it)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/data") / name,
        help="folder to make train and test in (default: %(default)s)",
    )
    arguments = parser.parse_args()
    try:
        _prepare(name, read, arguments.source, arguments.out)
    except UserError as error:
        print(f"prepare_{name}: {error}", file=sys.stderr)
        return 2
    return 0


def _prepare(name: str, read: Callable[[Path], Splits], source: Path, out: Path) -> None:
    if all(has_index(out / split) for split in ("train", "test")):
        print(f"{out}: already prepared")
        return
    if out.exists() and any(out.iterdir()):
        raise UserError(
            f"{out}: holds something else than a finished data set; remove it or change --out"
        )
    for split, samples in read(source).items():
        order = Permutation(derive_key(name, split), len(samples))(np.arange(len(samples)))
        with ShardWriter(out / split, prefix=name, samples_per_shard=1000) as writer:
            for position in order.tolist():
                writer.write(*samples[position])
        build_index(out / split, MediaConfig(), progress=False)
        print(f"{out / split}: {len(samples)} samples")
