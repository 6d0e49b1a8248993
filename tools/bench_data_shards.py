"""The shards of `bench_data`, made from published files, and the two configs that read them."""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path

import prepare_fsdd

from mmscale.config import AugmentConfig, Config, MediaConfig, SetConfig, TaskConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

SHARDS = 4  # two for each of two workers
SIDE = 224
KEPT = 0.9  # least share of a photograph's area that a crop keeps: open_clip's default
TOKENIZER = "tokenizer.json"


def config_of(what: str, folder: Path) -> Config:
    """The config that reads ``folder / what``; about 32 samples fill a sequence of either."""
    config = Config()
    config.data.tokenizer.file = str(folder / TOKENIZER)
    config.data.sequences = 4
    if what == "pictures":
        config.media = MediaConfig(image_height=SIDE, image_width=SIDE, image_patch=32)
        tasks = [TaskConfig(objective="contrastive", between=["image", "text"])]
        augment = AugmentConfig(image_crop=KEPT)
        config.data.seq_len = 2048
    else:
        tasks = [TaskConfig(input=["audio"], target="text")]
        augment = AugmentConfig()
        config.data.seq_len = 352
    config.data.sets = {what: SetConfig(shards=[str(folder / what)], tasks=tasks, augment=augment)}
    return config


def write_pictures(source: Path, folder: Path, samples: int) -> int:
    """``samples`` pairs of jpg and txt, photographs and captions repeated as often as it takes.

    Every photograph comes once before any comes again, then under another key and with its next
    caption. Returns how many different photographs there are. Raises `UserError` where the source
    cannot be used.
    """
    captions: dict[str, list[str]] = {}
    for row in _rows(source / "captions.csv"):
        captions.setdefault(row["file"], []).append(row["caption"].strip())
    pictures = {name: (source / name).read_bytes() for name in sorted(captions)[:samples]}
    names = list(pictures)
    with ShardWriter(folder / "pictures", samples_per_shard=-(-samples // SHARDS)) as writer:
        for number in range(samples):
            copy, which = divmod(number, len(names))
            own = captions[names[which]]
            fields = {"jpg": pictures[names[which]], "txt": own[copy % len(own)].encode()}
            writer.write(f"{Path(names[which]).stem}-{copy:03d}", fields)
    Tokenizer.train([text for own in captions.values() for text in own], 2048).save(
        folder / TOKENIZER
    )
    build_index(folder / "pictures", config_of("pictures", folder).media, progress=False)
    return len(names)


def write_speech(source: Path, folder: Path, samples: int) -> int:
    """The first ``samples`` clips with their words, none twice; returns how many there are."""
    splits = prepare_fsdd.read_splits(source)
    clips = list(islice((clip for split in splits.values() for clip in split), samples))
    with ShardWriter(folder / "speech", samples_per_shard=-(-len(clips) // SHARDS)) as writer:
        for key, fields in clips:
            writer.write(key, {"wav": fields["wav"], "txt": fields["txt"]})
    build_index(folder / "speech", config_of("speech", folder).media, progress=False)
    return len(clips)


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with open(table, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise UserError(
            f"{table}: {error.strerror}; point --data or MMSCALE_DATA at the published sets"
        ) from None
