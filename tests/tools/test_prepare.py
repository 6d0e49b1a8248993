"""The preparation scripts on the published files: counts, contents, and nothing shared between the
splits.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from patience import patience

PROJECT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("MMSCALE_DATA", PROJECT / "../shared/data")).resolve()

Sample = dict[str, bytes]


def run(script: str, *arguments: str, data: Path = DATA) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MMSCALE_DATA": str(data)}
    environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(PROJECT / "tools" / f"{script}.py"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience(15),
    )


def prepared(name: str, out: Path) -> dict[str, dict[str, Sample]]:
    """Run the script of a set; its samples by split and key."""
    if not (DATA / name).is_dir():
        pytest.skip(
            f"{DATA / name} is absent; set MMSCALE_DATA to the folder of the published sets"
        )
    done = run(f"prepare_{name}", "--out", str(out))
    assert done.returncode == 0, done.stderr
    splits = {}
    for split in ("train", "test"):
        samples = splits[split] = {}
        for path in sorted((out / split).glob("*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    key, field = member.name.split(".", 1)
                    stream = tar.extractfile(member)
                    assert stream is not None
                    samples.setdefault(key, {})[field] = stream.read()
        assert str(len(samples)) in done.stdout
    assert not set(splits["train"]) & set(splits["test"])
    return splits


def facts_of(samples: dict[str, Sample]) -> list[dict]:
    return [json.loads(sample["json"]) for sample in samples.values()]


def test_fsdd(tmp_path):
    splits = prepared("fsdd", tmp_path / "fsdd")
    assert {split: len(samples) for split, samples in splits.items()} == {
        "train": 2700,
        "test": 300,
    }
    assert {facts["index"] for facts in facts_of(splits["test"])} == set(range(5))
    assert {facts["index"] for facts in facts_of(splits["train"])} == set(range(5, 50))
    assert set(Counter(facts["digit"] for facts in facts_of(splits["test"])).values()) == {30}
    sample = splits["train"]["7_jackson_32"]
    assert sorted(sample) == ["json", "txt", "wav"]
    assert sample["txt"] == b"seven"
    assert json.loads(sample["json"]) == {"digit": 7, "speaker": "jackson", "index": 32}
    assert sample["wav"] == (DATA / "fsdd/recordings/7_jackson_32.wav").read_bytes()
    # Shuffled: neighbours are not all of one digit.
    assert len({key[0] for key in list(splits["train"])[:50]}) == 10

    again = run("prepare_fsdd", "--out", str(tmp_path / "fsdd"))
    assert again.returncode == 0 and "already prepared" in again.stdout


def test_emoji(tmp_path):
    splits = prepared("emoji", tmp_path / "emoji")
    assert {split: len(samples) for split, samples in splits.items()} == {
        "train": 3145,
        "test": 382,
    }
    groups = {
        split: {facts["group"] for facts in facts_of(samples)} for split, samples in splits.items()
    }
    assert len(groups["test"]) > 100 and not groups["train"] & groups["test"]
    pictures = {
        split: {hashlib.sha256(sample["png"]).digest() for sample in samples.values()}
        for split, samples in splits.items()
    }
    assert not pictures["train"] & pictures["test"]
    sample = {**splits["train"], **splits["test"]}["emoji_u0033_20e3"]
    assert sorted(sample) == ["json", "png", "txt"]
    assert sample["txt"] == b"keycap 3"
    assert json.loads(sample["json"]) == {
        "en": "keycap 3",
        "zh": "按键 3",
        "aliases_en": ["three"],
        "group": "33_20e3",
        "skin_tone": 0,
    }


def test_thucnews(tmp_path):
    splits = prepared("thucnews", tmp_path / "thucnews")
    assert {split: len(samples) for split, samples in splits.items()} == {
        "train": 9991,
        "test": 10000,
    }
    titles = {
        split: {sample["txt"] for sample in samples.values()} for split, samples in splits.items()
    }
    assert not titles["train"] & titles["test"]
    assert set(Counter(facts["label"] for facts in facts_of(splits["test"])).values()) == {1000}
    sample = splits["train"]["dev-00000"]
    assert sample["txt"].decode() == "体验2D巅峰 倚天屠龙记十大创新概览"
    assert json.loads(sample["json"]) == {"label": "游戏", "class": "game"}


@pytest.mark.parametrize("name", ["fsdd", "emoji", "thucnews"])
def test_a_missing_source_is_one_line_and_status_2(name, tmp_path):
    done = run(f"prepare_{name}", "--out", str(tmp_path / "out"), data=tmp_path / "nowhere")
    assert done.returncode == 2
    assert (
        len(done.stderr.splitlines()) == 1
        and "nowhere" in done.stderr
        and "--source" in done.stderr
    )
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    done = run("prepare_fsdd", "--out", str(tmp_path))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "--out" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
