"""python examples/search_pictures.py "a picture of the number three"

Searches the pictures of a folder by a sentence: embed all, multiply, sort. Plain numpy.

Contrastive training puts a picture and its caption close to each other. So the dot product of two
embeddings says how well they fit. Without --release a small model is trained first. Without
--pictures it searches the pictures that it was trained on, named after what they show. For pictures
of your own, give --pictures and the --release of a run on pictures and their captions.

Expect half a minute on two cores, and the best matches to show what was asked for.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from train_from_python import small_config

import mmscale
from mmscale.config import TaskConfig
from mmscale.data.index.dataset import Dataset
from mmscale.demo.digits import build_digits
from mmscale.release.export import export
from mmscale.train.loop import train


def train_on_captions(folder: Path) -> Path:
    """A run on the digits' pictures and captions; pictures of one digit belong together."""
    build_digits(folder / "digits", samples=120)
    config = small_config(folder)
    task = TaskConfig(objective="contrastive", between=["image", "text"], match="json.digit")
    config.data.sets["digits"].tasks = [task]
    # The more samples are compared with each other, the more each step teaches.
    config.data.seq_len, config.data.contrast_sequences = 512, config.data.sequences
    config.run.dir, config.train.steps, config.eval = str(folder / "search_run"), 80, {}
    config.check()
    return Path(train(config).run_dir)


def write_pictures(shards: Path, out: Path) -> None:
    """The pictures of ``shards`` as files such as three-1204.png."""
    out.mkdir(exist_ok=True)
    data = Dataset.open([str(shards)])
    for row in range(len(data)):
        name = f"{data.text('json.label', row)}-{data.text('json.image_index', row)}.png"
        (out / name).write_bytes(data.read("image", row))


def main() -> None:
    """Embed the pictures, embed the sentence, print the best matches."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2])
    parser.add_argument("sentence", nargs="?", default="a picture of the number three")
    parser.add_argument("--dir", type=Path, help="data and run go here; default: a new folder")
    parser.add_argument("--release", type=Path, help="a release of a run with pictures and text")
    parser.add_argument("--pictures", type=Path, help="folder of png and jpg files to search")
    arguments = parser.parse_args()
    folder = arguments.dir or Path(tempfile.mkdtemp(prefix="mmscale-"))
    release, pictures = arguments.release, arguments.pictures
    if release is None:
        release = folder / "search_release"
        export(train_on_captions(folder), release)
    if pictures is None:
        build_digits(folder / "digits", samples=120)
        pictures = folder / "pictures"
        write_pictures(folder / "digits" / "train", pictures)

    model = mmscale.load(release)
    paths = sorted(path for path in pictures.iterdir() if path.suffix in (".png", ".jpg"))
    table = np.stack([model.embed(image=path) for path in paths])  # [pictures, E]; keep it
    query = model.embed(text=arguments.sentence)  # [E], of length 1 as all rows are
    similarity = table @ query
    best = np.argsort(-similarity)[:5]
    print(f"{pictures}: {len(paths)} files, searched for {arguments.sentence!r}:")
    for row in best:
        print(f"  {similarity[row]:+.3f}  {paths[row].name}")
    print(f"result: {paths[best[0]].name} fits best")


if __name__ == "__main__":
    main()
