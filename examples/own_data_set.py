"""python examples/own_data_set.py

Makes a data set of your own in ten lines, verifies it, and trains three steps on it.

A sample is a key and its fields as bytes: png, jpg, wav, flac, txt, json and so on. `ShardWriter`
writes samples to plain tar shards, `build_index` looks at every file once and writes the index
beside them. (`mmscale data pack` makes the same of a folder or a table without any Python.)

Expect ten seconds, and three losses, of which the last is the lowest.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from pathlib import Path

from PIL import Image
from train_from_python import small_config

from mmscale.config import MediaConfig, SetConfig, TaskConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.index.manifest import Manifest
from mmscale.data.index.verify_shards import verify_shards
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.train.loop import train

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 70, 220)}


def picture(colour: tuple[int, int, int], size: int) -> bytes:
    """A PNG of one colour; in your data set, the bytes of a file."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


def write_data_set(folder: Path, media: MediaConfig) -> Manifest:
    """The ten lines: 60 pictures, each with a text and a label."""
    with ShardWriter(folder, samples_per_shard=25) as writer:
        for number in range(60):
            name = list(COLOURS)[number % 3]
            fields = {
                "png": picture(COLOURS[name], size=16 + number),
                "txt": f"a {name} picture".encode(),
                "json": json.dumps({"label": name}).encode(),
            }
            writer.write(f"picture{number:03d}", fields)
    return build_index(folder, media, progress=False)


def main() -> None:
    """Write, verify, train."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2])
    parser.add_argument("--dir", type=Path, help="shards and run go here; default: a new folder")
    folder = parser.parse_args().dir or Path(tempfile.mkdtemp(prefix="mmscale-"))

    config = small_config(folder)
    manifest = write_data_set(folder / "colours", config.media)
    print(
        f"{manifest.root}: {len(manifest)} samples in {len(manifest.shards)} shards, fields "
        f"{', '.join(manifest.fields)}"
    )
    faults = verify_shards(folder / "colours")  # every byte, against the index
    assert not faults, faults

    task = TaskConfig(input=["image"], prompt="colour", target="json.label")
    config.data.sets = {"colours": SetConfig(shards=[str(folder / "colours")], tasks=[task])}
    config.run.dir, config.train.steps, config.eval = str(folder / "colours_run"), 3, {}
    config.check()
    run_dir = Path(train(config).run_dir)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    print("result: no fault found; the losses are " + ", ".join(f"{loss:.3f}" for loss in losses))


if __name__ == "__main__":
    main()
