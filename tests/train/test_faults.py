"""Broken data in the middle of a run: the place is masked, the reason reported; the run continues
or ends, on every rank.
"""

import io
import json
import os
import shutil

import numpy as np
import pytest
from conftest import ROOT, run_module
from killing import metrics
from PIL import Image

from mmscale import prf
from mmscale.checkpoint.run_state import list_checkpoints
from mmscale.config import MediaConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.index.manifest import Manifest
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.strict_yaml import write_yaml

MEDIA = {"image_height": 16, "image_width": 16, "image_patch": 8, "mel_bins": 8}


def write_set(folder, more=b""):
    """64 pictures with texts in 8 shards; ``more`` ends every text."""
    with ShardWriter(folder, samples_per_shard=8) as writer:
        for number in range(64):
            pixels = (prf.uniform(prf.derive_key("faults", number), 20 * 20 * 3) * 255).astype(
                np.uint8
            )
            file = io.BytesIO()
            Image.fromarray(pixels.reshape(20, 20, 3)).save(file, "PNG")
            writer.write(
                f"s{number:02d}",
                {"png": file.getvalue(), "txt": b"colour %d" % (number % 5) + more},
            )
    build_index(folder, MediaConfig(**MEDIA), progress=False)


@pytest.fixture
def config(tmp_path):
    write_set(tmp_path / "data")
    tree = {
        "media": MEDIA,
        "data": {
            "sets": {"p": {"shards": str(tmp_path / "data"), "tasks": [{"input": ["image"],
            "target": "text"}]}},
            "seq_len": 64, "sequences": 4, "block": 4, "group_blocks": 4, "tokenizer":
            {"vocab_size": 300},
            "workers": 1, "max_bad_fraction": 0.9,
        },
        "model": {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "hidden": 24,
                  "stem_width": 4, "embed_dim": 8},
        "train": {"steps": 8, "precision": "fp32", "checkpoint_every": 4, "optimizer":
        {"warmup_steps": 2}},
        "run": {"dir": str(tmp_path / "run"), "progress": False, "tensorboard": False},
    }  # fmt: skip
    (tmp_path / "c.yaml").write_text(write_yaml(tree))
    return tmp_path / "c.yaml"


def damage(folder):
    """After the index was made: a byte flipped, the last shard truncated to its half, and a shard
    gone.

    Returns the keys that can no longer be read, by shard.
    """
    manifest = Manifest.open(folder)
    png = manifest.column("png")
    shards = [folder / name for name in manifest.shards]
    raw = bytearray(shards[2].read_bytes())
    raw[int(png[17]["offset"]) + 40] ^= 1
    shards[2].write_bytes(raw)
    half = shards[7].stat().st_size // 2
    os.truncate(shards[7], half)
    shards[4].unlink()
    cut = [i for i in range(56, 64) if int(png[i]["offset"] + png[i]["size"]) > half]
    return {shards[2].name: ["s17"], shards[4].name: [f"s{i}" for i in range(32, 40)],
            shards[7].name: [f"s{i}" for i in cut]}  # fmt: skip


def test_damage_in_mid_run_is_masked_and_reported_and_the_same_on_every_rank(
    config, tmp_path, monkeypatch
):
    # The shards are damaged between the start, which looks at their sizes, and the second half of
    # the run.
    run_module(["mmscale", "train", str(config), "train.steps=4"])
    assert not (tmp_path / "run" / "quarantine.jsonl").exists()
    gone = damage(tmp_path / "data")
    alone, together = [tmp_path / name for name in ("alone", "together")]
    for folder, ranks in ((alone, 1), (together, 2)):
        shutil.copytree(tmp_path / "run", folder)
        arguments = [str(config), f"run.dir={folder}", "train.steps=8"]
        run_module(["killing", "train_without_a_look", *arguments], ranks=ranks, cwd=ROOT / "tests")
    quarantined = [
        json.loads(line) for line in (together / "quarantine.jsonl").read_text().splitlines()
    ]
    assert {(row["shard"], row["key"]) for row in quarantined} == {
        (shard, key) for shard, keys in gone.items() for key in keys
    }
    for row in quarantined:
        assert (
            row.keys() == {"set", "key", "shard", "offset", "field", "reason", "step"}
            and row["offset"] > 0
        )
        assert {2: "CRC-32", 4: "cannot be read", 7: "ends before"}[int(row["shard"][-5])] in row[
            "reason"
        ]
    same = sorted(
        json.dumps(json.loads(line))
        for line in (alone / "quarantine.jsonl").read_text().splitlines()
    )
    assert same == sorted(map(json.dumps, quarantined))
    for row, expected in zip(metrics(alone), metrics(together), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["bad_samples"] == expected["bad_samples"]
    assert metrics(together)[-1]["bad_samples"] == len(quarantined)
    # Steps that are run again are reported once.
    shutil.rmtree(list_checkpoints(alone / "checkpoints")[-1])
    run_module(
        ["killing", "train_without_a_look", str(config), f"run.dir={alone}", "train.steps=8"],
        cwd=ROOT / "tests",
    )
    assert same == sorted(
        json.dumps(json.loads(line))
        for line in (alone / "quarantine.jsonl").read_text().splitlines()
    )


def test_too_much_damage_ends_the_run_on_every_rank_with_one_line(config, tmp_path):
    run_module(["mmscale", "train", str(config), "train.steps=2"])
    damage(tmp_path / "data")
    arguments = [str(config), "data.max_bad_fraction=0.05"]
    done = run_module(
        ["killing", "train_without_a_look", *arguments], ranks=2, cwd=ROOT / "tests", check=False
    )
    assert done.returncode != 0
    assert (
        "samples could not be used, more than data.max_bad_fraction=0.05; the reasons are in"
        in done.stderr
    )
    assert "mmscale/train/" not in done.stderr, "no traceback of ours for broken data"
    assert len(metrics(tmp_path / "run")) < 8


def test_a_shard_that_is_missing_at_the_start_is_refused_by_name(config, tmp_path):
    damage(tmp_path / "data")
    done = run_module(["mmscale", "train", str(config)], check=False)
    assert done.returncode == 2 and "shard-000004.tar: missing; restore it" in done.stderr


def test_damage_before_the_first_start_is_refused_by_name(config, tmp_path):
    """Text must be measured once; what cannot be read then would be left out of every later
    epoch. Few texts lie with the index, and are read there.
    """
    shutil.rmtree(tmp_path / "data")
    write_set(tmp_path / "data", b" and more words" * 100)
    manifest = Manifest.open(tmp_path / "data")
    assert not manifest.stored.kept_texts
    shard = tmp_path / "data" / manifest.shards[1]
    raw = bytearray(shard.read_bytes())
    raw[int(manifest.column("txt")[9]["offset"])] ^= 1
    shard.write_bytes(raw)
    done = run_module(["mmscale", "train", str(config)], check=False)
    assert done.returncode == 2
    assert (
        "sample 's09': text: shard shard-000001.tar changed since it was indexed (CRC-32 differs)"
        in done.stderr
    )
