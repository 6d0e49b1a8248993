"""Each layout of folders and tables: made as its tool makes it, packed by the one command of the
docs, and trained for three steps.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import run_module
from killing import metrics
from PIL import Image

CLASSES = ["cat", "dog"]
EACH = 6


def photo(path: Path, label: int, number: int) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng([label, number])
    pixels = draws.integers(128 * label, 128 * (label + 1), (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def photos(folder: Path, sub: str = "{label}/{number}.png") -> list[dict[str, str]]:
    rows = []
    for label, name in enumerate(CLASSES):
        for number in range(EACH):
            path = sub.format(label=name, number=EACH * label + number)
            photo(folder / path, label, number)
            rows.append({"path": path, "label": name, "text": f"a {name}, number {number}"})
    return rows


def image_folder(source: Path) -> tuple[Path, list[str], str]:
    for split in ("train", "val"):
        photos(source / split)
    return source, [], "train"


def csv_table(source: Path) -> tuple[Path, list[str], str]:
    rows = photos(source / "photos")
    table = source / "list.csv"
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "text"], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)
    return table, ["--image", "path", "--root", str(source / "photos")], ""


def media_folder(source: Path) -> tuple[Path, list[str], str]:
    rows = photos(source / "train", "{number}.png")
    lines = [{"file_name": row["path"], "label": row["label"], "text": row["text"]} for row in rows]
    (source / "train" / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    return source, [], "train"


def hf_repository(source: Path) -> tuple[Path, list[str], str]:
    rows = photos(source / "made")
    features = {"img": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    table = pa.table(
        {
            "img": [
                {"bytes": (source / "made" / row["path"]).read_bytes(), "path": None}
                for row in rows
            ],
            "label": [CLASSES.index(row["label"]) for row in rows],
            "text": [row["text"] for row in rows],
        }
    )
    info = json.dumps({"info": {"features": features}})
    folder = source / "repo" / "data"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        path = folder / f"{split}-00000-of-00001.parquet"
        pq.write_table(table.replace_schema_metadata({"huggingface": info}), path)
    return source / "repo", ["--split", "train"], ""


def img2dataset_files(source: Path) -> tuple[Path, list[str], str]:
    for row in photos(source, "00000/{number:09d}.png"):
        path = source / row["path"]
        path.with_suffix(".txt").write_text(row["text"])
        path.with_suffix(".json").write_text(json.dumps({"label": row["label"], "key": path.stem}))
    (source / "00000_stats.json").write_text('{"count": 12, "failed_to_download": 0}')
    return source, [], ""


@pytest.mark.parametrize(
    "make", [image_folder, csv_table, media_folder, hf_repository, img2dataset_files]
)
def test_one_command_and_three_steps(tmp_path: Path, make) -> None:
    source, options, split = make(tmp_path / "src")
    out = tmp_path / "out"
    done = run_module(
        ["mmscale", "data", "pack", str(source), "--out", str(out), "--strict", *options]
    )
    assert f"{out / split}: 12 samples in 1 shards" in done.stdout
    run = tmp_path / "run"
    has_text = make is not image_folder
    tasks = ["{objective: classify, input: [image], target: json.label}"]
    tasks += ["{input: [image], prompt: caption, target: text}"] if has_text else []
    (tmp_path / "my.yaml").write_text(
        f"""
run: {{dir: {run}, progress: false, tensorboard: false}}
model: {{width: 32, layers: 1, heads: 2, kv_heads: 1, head_dim: 16, hidden: 48, stem_width: 8,
  embed_dim: 16, image_stem: cnn}}
media: {{image_height: 16, image_width: 16, image_patch: 8}}
data:
  seq_len: 64
  sequences: 2
  workers: 0
  tokenizer: {{vocab_size: 320}}
  sets:
    mine: {{shards: {out / split}, tasks: [{", ".join(tasks)}]}}
train: {{steps: 3, optimizer: {{lr: 1e-3, warmup_steps: 1}}}}
"""
    )
    run_module(["mmscale", "train", str(tmp_path / "my.yaml")])
    rows = metrics(run)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(np.isfinite(row["loss"]) and row["loss"] > 0 for row in rows)
    assert json.loads((run / "classes.json").read_text()) == {"json_label": CLASSES}
