"""python examples/open_release.py [--release FOLDER]

Opens a release, classifies pictures, transcribes clips, and embeds a picture and a text.

A release is a folder that `mmscale export` or `export` below makes: `mmscale.load` needs nothing
else. Without --release a small model is trained and exported first. The pictures and clips are
digits that no training saw, so any release of a run on them will do: `make demo` leaves one in
runs/demo/release.

Expect half a minute on two cores, and more than half of a dozen right for the small model.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from train_from_python import train_small

import mmscale
from mmscale.data.index.dataset import Dataset
from mmscale.demo.digits import WORDS, build_digits
from mmscale.release.export import export

SAMPLES = 12


def main() -> None:
    """Open, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2])
    parser.add_argument("--dir", type=Path, help="data and run go here; default: a new folder")
    parser.add_argument("--release", type=Path, help="a release of a run on the digits")
    arguments = parser.parse_args()
    folder = arguments.dir or Path(tempfile.mkdtemp(prefix="mmscale-"))
    build_digits(folder / "digits", samples=120)
    release = arguments.release or folder / "release"
    if arguments.release is None:
        export(train_small(folder), release)

    model = mmscale.load(release)
    print(f"{release}: {model.parameters:,} parameters, trained for {model.step} steps")
    right = {"picture": 0, "clip": 0}
    data = Dataset.open([str(folder / "digits" / "test")])
    for row in range(SAMPLES):
        picture, clip = data.read("image", row), data.read("audio", row)  # or paths of files
        label, probability = model.classify(WORDS["en"], image=picture, prompt="digit")[0]
        heard = model.transcribe(clip, prompt="word", max_new_tokens=8)
        shown, spoken = data.text("json.label", row), data.text("json.word", row)
        right["picture"] += label == shown
        right["clip"] += heard == spoken
        print(f"{data.key(row)}: shows {label!r} ({probability:.0%}), it is {shown!r}; ", end="")
        print(f"says {heard!r}, it is {spoken!r}")

    picture, text = model.embed(image=data.read("image", 0)), model.embed(text="a handwritten one")
    print(f"embeddings: {len(picture)} numbers, lengths {np.linalg.norm([picture, text], axis=1)}")
    print(
        f"result: {right['picture']} of {SAMPLES} pictures and {right['clip']} of {SAMPLES} clips "
        "are right"
    )


if __name__ == "__main__":
    main()
