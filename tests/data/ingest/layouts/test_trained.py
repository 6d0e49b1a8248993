"""Every layout of speech by the command of the docs, and three steps of training on them all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_module
from killing import metrics
from layout_packs import noise, write_sound


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def common_voice(top: Path) -> Path:
    write_sound(top / "en/clips/a.mp3", noise(9000))
    write(top / "en/train.tsv", "client_id\tpath\tsentence\nc\ta.mp3\tone\n")
    return top / "en"


def librispeech(top: Path) -> Path:
    write_sound(top / "LibriSpeech/train/1/2/1-2-0000.flac", noise(9000))
    write(top / "LibriSpeech/train/1/2/1-2.trans.txt", "1-2-0000 TWO\n")
    return top / "LibriSpeech"


def aishell(top: Path) -> Path:
    write_sound(top / "wav/train/S1/A1.wav", noise(9000))
    write(top / "transcript/aishell_transcript_v0.8.txt", "A1 三 三\n")
    return top


def nemo(top: Path) -> Path:
    write_sound(top / "a.wav", noise(90_000))
    row = {"audio_filepath": "a.wav", "offset": 1, "duration": 0.6, "text": "four"}
    write(top / "train_manifest.json", json.dumps(row) + "\n")
    return top / "train_manifest.json"


def kaldi(top: Path) -> Path:
    write_sound(top / "wavs/a.ogg", noise(90_000))
    files = {"wav.scp": "r wavs/a.ogg", "segments": "u r 0.5 1.25", "text": "u five"}
    for name, line in files.items():
        write(top / "data/train" / name, f"{line}\n")
    return top


def wenetspeech(top: Path) -> Path:
    write_sound(top / "audio/a.opus", noise(90_000))
    part = {"sid": "S", "begin_time": 1, "end_time": 2, "text": "六", "subsets": ["train"]}
    tree = {"audios": [{"aid": "A", "path": "audio/a.opus", "segments": [part]}]}
    write(top / "WenetSpeech.json", json.dumps(tree))
    return top


LAYOUTS = [common_voice, librispeech, aishell, nemo, kaldi, wenetspeech]


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    top = tmp_path_factory.mktemp("speech")
    for layout in LAYOUTS:
        source = layout(top / "sources" / layout.__name__)
        run_module(["mmscale", "data", "pack", source, "--out", top / layout.__name__])
    return top


def test_three_steps_on_each(packed: Path, tmp_path: Path) -> None:
    sets = {
        layout.__name__: {
            "shards": str(packed / layout.__name__ / "train"),
            "tasks": [{"input": ["audio"], "target": "text"}],
        }
        for layout in LAYOUTS
    }
    config = {
        "description": "speech of every layout",
        "run": {"dir": str(tmp_path / "run")},
        "model": {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "hidden": 48,
                  "stem_width": 8, "embed_dim": 16},
        "data": {"seq_len": 128, "sequences": 2, "tokenizer": {"vocab_size": 300}, "sets": sets},
        "train": {"steps": 3, "micro_batch": 1, "precision": "fp32"},
    }  # fmt: skip
    write(tmp_path / "config.yaml", json.dumps(config))
    run_module(["mmscale", "train", tmp_path / "config.yaml"])
    rows = metrics(tmp_path / "run")
    assert [(row["step"], row["bad_samples"]) for row in rows] == [(0, 0), (1, 0), (2, 0)]
